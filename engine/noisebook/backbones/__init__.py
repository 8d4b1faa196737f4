"""Denoisers: one small adapter a family, all giving `x0_hat = D(y, sigma)`, and the registry that finds them.

A backbone is named by a word (shipped with the package), by a `.safetensors` file that noisebook wrote, by a published
`.pt` file of CoD, by a folder in diffusers layout, or by a hub's OWNER/NAME.
"""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisebook.backbones.base import Backbone, fingerprint_of, identify
from noisebook.backbones.checkpoint import read_checkpoint
from noisebook.errors import BackboneError

WEIGHTS = Path(__file__).parent / "weights"

# kind of checkpoint -> "module:function" that builds the adapter from (config, tensors); imported only when needed
KINDS: dict[str, str] = {
    "convnet": "noisebook.backbones.nets.convnet:from_checkpoint",
    "cod": "noisebook.backbones.cod.cod:from_checkpoint",
    "dct-prior": "noisebook.backbones.nets.gaussian:dct_from_checkpoint",
    "nvidia-edm": "noisebook.backbones.nets.nvidia_edm:from_checkpoint",
    "pca-prior": "noisebook.backbones.nets.gaussian:pca_from_checkpoint",
    "spectrum-prior": "noisebook.backbones.nets.gaussian:spectrum_from_checkpoint",
    "unet": "noisebook.backbones.nets.unet:from_checkpoint",
}
# shipped names that are another family's view of shipped weights, also of their own -> ("module:function", the weights)
VIEWS: dict[str, tuple[str, str]] = {
    "cifar10-ddpm": ("noisebook.backbones.wrappers.reparameterised:ddpm_view", "cifar10-edm"),
    "cifar10-flow": ("noisebook.backbones.wrappers.reparameterised:flow_view", "cifar10-flow"),
}


def shipped() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted({path.stem for path in WEIGHTS.glob("*.safetensors")} | set(VIEWS))


def load(name: str | Path, device: str = "cpu", **options: Any) -> Backbone:
    """The backbone of that name, file, folder or hub id, on `device`, in evaluation mode; a pixel model that takes a single
    size is tiled, so that it takes any.

    options  what a model with conditions is told: `prompt`, `negative_prompt`, `guidance`, `label`, and `autoencoder` of a
             latent CoD; see docs/backbones.md

    Raises BackboneError when there is none, it cannot be read, or it does not know an option.
    """
    backbone = _find(str(name), {key: value for key, value in options.items() if value is not None})
    if backbone.size is not None and backbone.state_shape(*backbone.size) == (backbone.channels, *backbone.size):
        from noisebook.backbones.wrappers.tiled import Tiled

        backbone = Tiled(backbone)
    return backbone.to(device).eval().requires_grad_(False)


def _find(name: str, options: dict[str, Any]) -> Backbone:
    """The backbone of that name, as its adapter makes it."""
    if name in VIEWS:
        function, weights = VIEWS[name]
        backbone = _function(function)(_read(WEIGHTS / f"{weights}.safetensors", options))
        backbone.name = name
        return backbone
    path = WEIGHTS / f"{name}.safetensors" if name in shipped() else Path(name)
    if path.is_file() and path.suffix in (".pt", ".ckpt"):
        if other := sorted(set(options) - {"guidance", "autoencoder"}):
            raise BackboneError(f"{path}: a published CoD takes guidance and autoencoder, not {', '.join(other)}")
        return _function("noisebook.backbones.cod.files:load_published")(path, **options)
    if path.is_file():
        return _read(path, options)
    known = ["prompt", "negative_prompt", "guidance", "label", "variant", *(() if path.is_dir() else ("revision",))]
    if not set(options) <= set(known):
        raise BackboneError(f"{name} takes the options {', '.join(known)}, not {', '.join(sorted(options))}")
    if path.is_dir():
        return _function("noisebook.backbones.diffusers.folder:from_folder")(path, **options)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return _function("noisebook.backbones.diffusers.folder:from_hub")(name, **options)
    raise BackboneError(
        f"no backbone {name!r}: give one of {', '.join(shipped())}, a .safetensors file, a diffusers folder, or a hub's "
        "OWNER/NAME"
    )


def _read(path: Path, options: dict[str, Any]) -> Backbone:
    """The backbone in a checkpoint of noisebook's."""
    kind, config, tensors = read_checkpoint(path)
    if kind not in KINDS:
        raise BackboneError(f"{path}: unknown kind of backbone {kind!r}; this version knows {', '.join(KINDS)}")
    try:
        backbone = _function(KINDS[kind])(config, tensors, **options)
    except TypeError as error:
        if not options:
            raise
        raise BackboneError(f"{path}: a backbone of kind {kind!r} takes no {', '.join(options)}") from error
    identify(backbone, path, kind, config, tensors, options)
    return backbone


def _function(place: str) -> Callable[..., Backbone]:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


__all__ = ["Backbone", "fingerprint_of", "load", "shipped"]
