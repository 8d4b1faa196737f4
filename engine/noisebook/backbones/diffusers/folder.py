"""Loads what people have: folders in diffusers' layout and repositories of the Hugging Face hub.

A pipeline is a network, an autoencoder and text encoders where it has them, and a scheduler, whose config says what the
network was trained to predict. Conditions (prompt, class) are fixed at load.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from noisebook.backbones.base import Backbone
from noisebook.backbones.checkpoint import one_line
from noisebook.backbones.diffusers.files import MODEL, SCHEDULER, TEXT_MODEL, Folder
from noisebook.backbones.diffusers.levels import check_schedule
from noisebook.backbones.diffusers.models import AUTOENCODERS, BUILDERS, Network, Options
from noisebook.backbones.extras import needs
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder
from noisebook.backbones.wrappers.latent import Latent
from noisebook.errors import BackboneError

# Parts of a repository, "" for that of a single model, and how their weight files are called.
WEIGHTS = {
    "": MODEL,
    "unet/": MODEL,
    "transformer/": MODEL,
    "vae/": MODEL,
    "vqvae/": MODEL,
    "text_encoder/": TEXT_MODEL,
    "text_encoder_2/": TEXT_MODEL,
    "text_encoder_3/": TEXT_MODEL,
}
TOKENIZERS = ("tokenizer/", "tokenizer_2/", "tokenizer_3/")


def from_folder(
    path: str | Path,
    *,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    guidance: float = 1.0,
    label: int | None = None,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The model in a folder: a pipeline (`model_index.json` and a folder a part), or a single `UNet2DModel` of pixels.

    prompt            of a model that reads text; default: the empty prompt
    negative_prompt   what guidance leads away from; default: as in the pipelines, zeros for SDXL, else the empty prompt
    guidance          1: one network call per level. Otherwise twice the batch, unless the model knows guidance itself (Flux)
    label             of a class-conditional model; default: its extra class that means none, if it has one
    variant           of the weight files, fp16 for example: of each part that has it, the plain ones of the others, as in
                      diffusers; default: the plain ones, or else fp16 or bf16
    device, dtype     where the weights of network and autoencoder are put, and what those of the network are there: with
                      another dtype than float32 the caller calls `accelerate` with it. The rest stays on the CPU until then

    A single model (`config.json` and its weights) needs the scheduler's config beside it or in `scheduler/`. Weights come
    from safetensors only. Raises BackboneError where something is missing, damaged, of a kind that is not read, or where an
    option does not apply.
    """
    with needs("diffusers", "diffusers"):
        import diffusers  # noqa: F401 (said before a file is read)
    if not math.isfinite(guidance):
        raise BackboneError(f"guidance must be a finite number, not {guidance}")
    folder, options = Folder(path, variant, device, dtype), Options(prompt, negative_prompt, float(guidance), label)
    part = folder.denoiser()
    config, schedule = folder.config(part), folder.scheduler(part)
    kind = str(config.get("_class_name"))
    if kind not in BUILDERS:
        raise BackboneError(f"{folder.path / part}: holds a {kind}; read are {', '.join(BUILDERS)}")
    check_schedule(schedule, folder.path)
    backbone = BUILDERS[kind](Network(folder, part, kind, config, schedule), options)
    return _named(backbone, folder.path.resolve().name).eval().requires_grad_(False)


def from_hub(repo_id: str, *, revision: str | None = None, variant: str | None = None, **options: Any) -> Backbone:
    """The model in a repository of the Hugging Face hub, from the local cache or downloaded; `options` as in `from_folder`.

    Only configs, tokenizers and the safetensors of the parts that may be used are fetched, under a `variant` the plain ones
    of parts that do not have it; offline the cache must hold them. Raises BackboneError, naming the repository and the file
    that is missing.
    """
    with needs("huggingface_hub", "diffusers"):
        import huggingface_hub
    try:
        path = huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=hub_patterns(variant))
        if variant and (bare := parts_without_weights(Path(path))):
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=hub_patterns(None, bare))
    except (OSError, ValueError, RuntimeError) as error:  # the hub's own errors are of these kinds
        raise BackboneError(
            f"{repo_id}: no model_index.json: it is not in the local cache, and the hub does not give it "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    try:
        return _named(from_folder(path, variant=variant, **options), repo_id)
    except BackboneError as error:
        raise BackboneError(f"{repo_id}: {error}") from error


def autoencoder_in(path: str | Path, channels: int) -> tuple[DiffusersAutoencoder, str]:
    """(the autoencoder in a folder that holds nothing else, its fingerprint). Raises BackboneError unless its latents have
    that many channels and 8 x 8 pixels each."""
    folder = Folder(path)
    kind = str(folder.config("").get("_class_name"))
    if kind not in AUTOENCODERS:
        raise BackboneError(f"{folder.path}: holds a {kind}; an autoencoder is {' or '.join(AUTOENCODERS)}")
    module = folder.module("", kind)
    config: Any = module.config
    factor = 1 << (len(config.block_out_channels) - 1)
    if config.latent_channels != channels or factor != 8:
        raise BackboneError(
            f"{folder.path}: latents of {config.latent_channels} channels and {factor} x {factor} pixels; "
            f"the network takes {channels} and 8 x 8"
        )
    return DiffusersAutoencoder(module), folder.read[""].version_1()  # as files of such a model have it: it is small


def parts_without_weights(path: Path) -> list[str]:
    """The keys of WEIGHTS whose folders have a config, but no weights; none where no folder has weights."""
    parts = [part for part in WEIGHTS if (path / part / "config.json").is_file()]
    bare = [part for part in parts if not any((path / part).glob("*.safetensors"))]
    return bare if len(bare) < len(parts) else []


def hub_patterns(variant: str | None = None, parts: Collection[str] = tuple(WEIGHTS)) -> list[str]:
    """The files of a repository that a pipeline may need, as patterns of `snapshot_download`: no pickles, one variant."""
    shard, patterns = "-?????-of-?????", ["model_index.json", "config.json", *SCHEDULER]
    patterns += [f"{part}{name}" for part in TOKENIZERS for name in ("*.json", "*.txt", "*.model")]
    for part, stem in ((part, WEIGHTS[part]) for part in parts):
        patterns += [f"{part}config.json", f"{part}{stem}*.index*.json"]
        ends = (f".{variant}", f".{variant}{shard}", f"{shard}.{variant}") if variant else ("", shard)
        patterns += [f"{part}{stem}{end}.safetensors" for end in ends]
    return list(dict.fromkeys(patterns))


def _named(backbone: Backbone, name: str) -> Backbone:
    backbone.name = name
    if isinstance(backbone, Latent):
        backbone.inner.name = name
    return backbone
