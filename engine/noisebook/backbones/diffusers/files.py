"""Files of diffusers' layout: JSON configs, safetensors (whole, in shards, in a variant), and what they add up to.

Pickles are never read: only safetensors.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.checkpoint import MISFIT, check_config, one_line
from noisebook.backbones.diffusers.parts import Part
from noisebook.backbones.extras import needs
from noisebook.backbones.foreign import WEIGHT_ENDINGS, what_is
from noisebook.backbones.skeleton import skeleton
from noisebook.errors import BackboneError, printable
from noisebook.runtime import strict_json

MODEL, TEXT_MODEL = "diffusion_pytorch_model", "model"  # names of weight files, without endings: diffusers, transformers
WEIGHTS_FILE = f"{MODEL}.safetensors"
MOST_JSON = 1 << 26  # bytes: an index of shards names every tensor
FALLBACKS = ("fp16", "bf16")  # variants that are taken where there are no plain weights
VARIANT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")  # a part of a file's name, never a path
MODEL_PARTS = ("unet", "transformer", "scheduler", "vae", "vqvae")
PASSED_OVER = ("safety_checker", "feature_extractor")  # parts that only look at pictures after they are made
SCHEDULER = ("scheduler/scheduler_config.json", "scheduler_config.json")
# Attention layers of models that were saved before diffusers 0.15, and what they are called since.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MiB. Raises BackboneError where there is none."""
    try:
        with open(path, "rb") as f:
            value = strict_json.loads(f.read(MOST_JSON + 1), MOST_JSON)
    except (OSError, ValueError) as error:
        what = "" if path.suffix == ".json" and not (text := what_is(path)) else text
        raise BackboneError(f"{path}: cannot be read as JSON ({type(error).__name__}){what}") from error
    if not isinstance(value, dict):
        raise BackboneError(f"{path}: not a JSON object")
    return value


def has_variant(folder: Path, stem: str, variant: str) -> bool:
    """Whether a model folder has weights of that variant, whole or in shards, under any of the names they were given."""
    names = (f"{stem}.{variant}.safetensors", *_index_names(stem, variant))
    return any((folder / name).is_file() for name in names)


def weight_files(folder: Path, stem: str = MODEL, variant: str | None = None) -> list[Path]:
    """The files with the weights of a model folder: `stem.safetensors`, or the shards that its index names.

    `variant` chooses `stem.VARIANT.safetensors` instead; without one, FALLBACKS stand in for weights that are not there.
    Raises BackboneError where there are none, or only pickles; shards need not be there."""
    for v in (variant,) if variant else ("", *FALLBACKS):
        end = f".{v}" if v else ""
        if (folder / f"{stem}{end}.safetensors").is_file():
            return [folder / f"{stem}{end}.safetensors"]
        for name in _index_names(stem, v):
            if (folder / name).is_file():
                return _shards(folder / name)
    wanted = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    pickles, others = ([p.name for p in sorted(folder.glob(f"*{end}"))] for end in (".bin", ".safetensors"))
    if others:
        reason = f"there is {others[0]}; variant='...' chooses what stands between the dots"
    elif pickles:
        reason = f"{pickles[0]} is a pickle, which can run code; convert it (save_pretrained with safe_serialization=True)"
    else:
        reason = "there are no weights (save_pretrained writes them; variant='fp16' where only those were published)"
    raise BackboneError(f"{folder}: no {wanted}: {reason}")


def _index_names(stem: str, variant: str) -> list[str]:
    end = f".{variant}" if variant else ""
    return list(dict.fromkeys((f"{stem}.safetensors.index{end}.json", f"{stem}{end}.safetensors.index.json")))


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BackboneError(f"{index}: no weight_map, so this is no index of shards")
    files = sorted({str(name) for name in names.values()})
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in files):
        raise BackboneError(f"{index}: names shards that are no safetensors files beside it")
    return [index.parent / name for name in files]


class Folder:
    """A pipeline (`model_index.json` and a folder a part), or the folder of a single model.

    Weights that are read through it are noted down in `read`, part by part. Raises BackboneError where a file is missing.

    device, dtype   where modules are put, and what the network's weights are there, of whatever they are stored as; those of
                    other modules are float32
    """

    def __init__(
        self,
        path: str | Path,
        variant: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if variant is not None and not VARIANT.fullmatch(variant):
            raise BackboneError(f"variant is what stands between the dots of a weight file, not {printable(variant, 60)!r}")
        self.path, self.variant, self.device, self.dtype = Path(path), variant, torch.device(device), dtype
        self.read: dict[str, Part] = {}
        index = self.path / "model_index.json"
        self.index = read_json(index) if index.is_file() else {}
        self.parts: dict[str, str] = {}  # part -> its class, of those that are not null in the index
        for name, entry in self.index.items():
            if isinstance(entry, list) and len(entry) == 2 and entry[1] is None:
                continue
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
                self.parts[name] = entry[1]
            elif isinstance(entry, list) or name in MODEL_PARTS:
                shown = printable(entry, 60)
                raise BackboneError(f"{index}: {printable(name, 60)} is [library, class] or [null, null], not {shown}")

    def has(self, part: str) -> bool:
        """Whether the pipeline has that part: it is in the index, and not null there."""
        return part in self.parts

    def class_of(self, part: str) -> str | None:
        """The class that the pipeline's index gives for a part."""
        return self.parts.get(part)

    def only(self, what: str, *known: str) -> None:
        """Raises BackboneError where the pipeline has other parts than the `known` ones, of which nobody knows whether
        pictures depend on them; those of PASSED_OVER do not count."""
        others = sorted(set(self.parts) - set(known) - set(PASSED_OVER))
        if others:
            shown = ", ".join(f"{printable(name, 60)} ({printable(self.parts[name], 60)})" for name in others)
            raise BackboneError(
                f"{self.path}: {what} with {shown}, which is not read; where the network does well without, write "
                "[null, null] for it in model_index.json"
            )

    def denoiser(self) -> str:
        """The part that holds the network; "" where that is the folder itself: a single model, or an early pipeline."""
        if not self.index:
            return ""
        part = next((name for name in ("unet", "transformer") if self.has(name)), None)
        if part is None:
            raise BackboneError(f"{self.path}: a {self.index.get('_class_name')} without unet or transformer; not read")
        at_root = not (self.path / part).is_dir() and (self.path / "config.json").is_file()
        return "" if at_root else part

    def config(self, part: str) -> dict[str, Any]:
        """The config.json of a part."""
        path = self.path / part / "config.json"
        if not path.is_file():
            raise BackboneError(
                f"{path.parent}: no config.json, so this is no model folder of diffusers{_holds(path.parent)}"
            )
        config = read_json(path)
        if config.get("quantization_config") is not None:
            raise BackboneError(
                f"{path.parent}: its weights are quantised (quantization_config), which is not read: take the model as it "
                "was before"
            )
        return config

    def scheduler(self, part: str) -> dict[str, Any]:
        """The scheduler's config, beside the pipeline or beside the model."""
        places = [base / name for base in (self.path, self.path / part) for name in SCHEDULER]
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            raise BackboneError(
                f"{self.path}: no {' or '.join(SCHEDULER)}: the weights do not say which noise levels they know"
            )
        return read_json(path)

    def tensors(self, part: str, kind: str, stem: str = MODEL) -> dict[str, Tensor]:
        """The stored tensors of a part, which is read as the class `kind`; with its config they enter the fingerprint."""
        variant = self.variant if self._variant_of(part, stem) else None
        files = weight_files(self.path / part, stem, variant)
        self.read[part] = Part.of(kind, public(self.config(part)), files)
        return self.read[part].tensors()

    def _variant_of(self, part: str, stem: str) -> bool:
        """Whether the variant that was asked for is taken of this part: where it has one, or no part of the pipeline has."""
        if self.variant is None or has_variant(self.path / part, stem, self.variant):
            return self.variant is not None
        others = [self.path / name for name in self.parts]
        return not any(has_variant(path, s, self.variant) for path in others for s in (MODEL, TEXT_MODEL))

    def module(self, part: str, kind: str) -> nn.Module:
        """The part as a module of diffusers' class `kind`, on the folder's device."""
        with needs("diffusers", "diffusers"):
            import diffusers
        cls = getattr(diffusers, kind)
        config = self.config(part)
        stored = self.tensors(part, kind)
        config = public(config)  # without _class_name, which the library would look up
        with self._fitting(part, kind):
            check_config(config, stored)
            module = skeleton(lambda: cls.from_config(config), stored)
        dtype = self.dtype if part == self.denoiser() else torch.float32
        # cast there: what is stored is less to carry
        placed = {_renamed(name): t.to(self.device).to(dtype) for name, t in stored.items()}
        with self._fitting(part, kind):
            module.load_state_dict(placed, assign=True)
        return module

    @contextmanager
    def _fitting(self, part: str, kind: str) -> Iterator[None]:
        """What a library raises inside the `with` block where config and weights do not fit, as BackboneError."""
        try:
            yield
        except MISFIT as error:
            reason = one_line(error)
            raise BackboneError(f"{self.path / part}: config and weights do not make a {kind}: {reason}") from error


def _holds(folder: Path) -> str:
    """What a folder that is no model has in it, for a message."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in WEIGHT_ENDINGS and path.is_file())
    found = ((path.name, what_is(path, " is ")) for path in files[:8])
    return next((f"; {printable(name, 100)} in it{text}" for name, text in found if text), "")


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what the library notes down for itself: its version, the path it was read from."""
    return {k: v for k, v in config.items() if not k.startswith("_")}


def _renamed(name: str) -> str:
    """A parameter's present name: attention layers were called otherwise before diffusers 0.15."""
    if "attentions" in name:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
    return name
