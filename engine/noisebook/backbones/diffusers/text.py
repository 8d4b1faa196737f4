"""Prompts to embeddings, as the pipelines of diffusers make them: an encoder is loaded, run once, and dropped.

Every function takes the prompts (one, or the one to go away from and the one to go to) and gives {name: [prompts, ...]},
float32, under the names that the network takes them by, and the ids of their tokens, which stand for the tokenizer in
the fingerprint.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones.checkpoint import MISFIT, check_config, check_size, one_line
from noisebook.backbones.diffusers.files import TEXT_MODEL, Folder, public, read_json
from noisebook.backbones.extras import needs
from noisebook.errors import BackboneError

# Tensors that a text encoder's class has no use for, and that change none of its outputs: other halves of the model that
# it is a part of, and numbers 0, 1, 2 ... that were once saved.
OTHER_HALVES = re.compile(
    r"(.*\.)?position_ids|(text_projection|visual_projection|vision_model|decoder|lm_head)\..*|logit_scale"
)
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # of which one set must be there
SD3_LENGTH, FLUX_LENGTH = 256, 512  # tokens of T5, the pipelines' defaults


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bars inside the `with` block."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass
class Embedded:
    """Embeddings by name, and token ids by tokenizer."""

    conditions: dict[str, Tensor]
    tokens: dict[str, list[list[int]]] = field(default_factory=dict)


class TextEncoders:
    """The tokenizers and encoders of a pipeline, `suffix` "", "_2" or "_3"; `prompts` go through whichever is asked for."""

    def __init__(self, folder: Folder, prompts: Sequence[str]):
        self.folder, self.prompts = folder, list(prompts)
        self.tokens: dict[str, list[list[int]]] = {}

    def run(self, suffix: str, length: int | None = None) -> Any:
        """The encoder's output with all hidden states for the prompts, padded to `length` tokens (None: the tokenizer's).

        Raises BackboneError where a part is missing, damaged or of another class.
        """
        with needs("transformers", "text"):
            transformers: Any = import_module("transformers")  # not `import`: a type checker would read it all
        tokenizer = self._tokenizer(transformers, f"tokenizer{suffix}")
        part = f"text_encoder{suffix}"
        kind = self._kind(part, ENCODERS)
        tensors = self.folder.tensors(part, kind, TEXT_MODEL)
        try:
            ids = tokenizer(
                self.prompts,
                padding="max_length",
                max_length=length or tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            cls, read = getattr(transformers, kind), public(self.folder.config(part))
            read.pop("auto_map", None)  # code that comes with a model is never looked at
            check_config(read, tensors)
            config = cls.config_class.from_dict(read)
            with quiet(transformers):
                check_size(lambda: cls(config), tensors)
                encoder, report = cls.from_pretrained(
                    None,
                    config=config,
                    local_files_only=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    state_dict={n: t.float() for n, t in tensors.items() if t.is_floating_point()},
                    output_loading_info=True,
                )
            lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
            if lost:
                raise ValueError(f"missing or of another shape: {', '.join(lost)}")
            whole = [name for name, t in tensors.items() if not t.is_floating_point()]
            extra = sorted({*report["unexpected_keys"], *whole} - set(filter(OTHER_HALVES.fullmatch, tensors)))
            if extra:
                scaled = any("scale" in name or "absmax" in name for name in extra)
                why = "quantised weights and their scales are not read" if scaled else "nobody knows what they change"
                raise ValueError(f"{why}: {len(extra)} tensors that it does not take, {', '.join(extra)}")
            with torch.no_grad():
                out = encoder.eval()(ids, output_hidden_states=True)
        except MISFIT as error:
            reason = one_line(error)
            raise BackboneError(f"{self.folder.path / part}: config and weights do not make a {kind}: {reason}") from error
        self.tokens[f"tokenizer{suffix}"] = ids.tolist()
        return out

    def length(self, suffix: str) -> int:
        """The number of tokens that a tokenizer pads to."""
        path = self.folder.path / f"tokenizer{suffix}" / "tokenizer_config.json"
        length = read_json(path).get("model_max_length")
        if not isinstance(length, int):
            raise BackboneError(f"{path}: no model_max_length")
        return length

    def _kind(self, part: str, known: Sequence[str]) -> str:
        kind = self.folder.class_of(part) or "null"
        if kind not in known:
            raise BackboneError(f"{self.folder.path}: {part} is a {kind}; read are {', '.join(known)}")
        return kind

    def _tokenizer(self, transformers: Any, part: str) -> Any:
        kind, path = self._kind(part, TOKENIZERS), self.folder.path / part
        if not any(all((path / name).is_file() for name in names) for names in VOCABULARIES):
            names = ", nor ".join(" with ".join(names) for names in VOCABULARIES)
            raise BackboneError(f"{path}: no {names}")  # the library would make do with an empty vocabulary
        cls = getattr(transformers, kind)
        # its config may name other files for these: only those beside it are read
        files = {name: path / file for name, file in cls.vocab_files_names.items()}
        beside = {name: str(file) if file.is_file() else None for name, file in files.items()}
        try:
            return cls.from_pretrained(path, local_files_only=True, trust_remote_code=False, **beside)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise BackboneError(f"{path}: cannot be read as a {kind}: {one_line(error)}") from error


def embed_sd(folder: Folder, prompts: Sequence[str]) -> Embedded:
    """Stable Diffusion 1 and 2: the last hidden states of one encoder."""
    encoders = TextEncoders(folder, prompts)
    return Embedded({"encoder_hidden_states": encoders.run("")[0]}, encoders.tokens)


def embed_sdxl(folder: Folder, prompts: Sequence[str], zeros: bool) -> Embedded:
    """SDXL: the last hidden states but one of two encoders side by side, and what the second one pools.

    `zeros` puts zeros in place of the first prompt, as the pipelines do for a negative prompt that is left out.
    """
    encoders = TextEncoders(folder, prompts)
    first, second = encoders.run(""), encoders.run("_2")
    states, pooled = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second[0]
    if zeros:
        states, pooled = states.clone(), pooled.clone()
        states[0], pooled[0] = 0, 0
    return Embedded({"encoder_hidden_states": states, "text_embeds": pooled}, encoders.tokens)


def embed_sd3(folder: Folder, prompts: Sequence[str], width: int) -> Embedded:
    """SD3: two CLIP encoders side by side, padded to `width` and followed by T5, or by zeros where the pipeline has none."""
    encoders = TextEncoders(folder, prompts)
    length = encoders.length("")
    clip = [encoders.run(suffix, length) for suffix in ("", "_2")]
    states = torch.cat([out.hidden_states[-2] for out in clip], -1)
    if folder.has("text_encoder_3"):
        long = encoders.run("_3", SD3_LENGTH)[0]
    else:
        long = torch.zeros(len(prompts), SD3_LENGTH, width)
    states = torch.cat([F.pad(states, (0, long.shape[-1] - states.shape[-1])), long], 1)
    pooled = torch.cat([out[0] for out in clip], -1)
    return Embedded({"encoder_hidden_states": states, "pooled_projections": pooled}, encoders.tokens)


def embed_flux(folder: Folder, prompts: Sequence[str]) -> Embedded:
    """Flux: what a CLIP encoder pools, and the last hidden states of T5."""
    encoders = TextEncoders(folder, prompts)
    pooled, states = encoders.run("").pooler_output, encoders.run("_2", FLUX_LENGTH)[0]
    return Embedded({"encoder_hidden_states": states, "pooled_projections": pooled}, encoders.tokens)
