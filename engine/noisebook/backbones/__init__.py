"""Denoisers: one small adapter a family, all giving `x0_hat = D(y, lam)`, and the registry that finds them.

A backbone is named by a word (shipped with the package), by a `.safetensors` file that noisebook wrote, or by a folder
in diffusers layout.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.checkpoint import read_checkpoint
from noisebook.errors import BackboneError

WEIGHTS = Path(__file__).parent / "weights"

# kind of checkpoint -> "module:function" that builds the adapter from (config, tensors); imported only when needed
KINDS: dict[str, str] = {
    "convnet": "noisebook.backbones.convnet:from_checkpoint",
    "pca-prior": "noisebook.backbones.gaussian:pca_from_checkpoint",
    "spectrum-prior": "noisebook.backbones.gaussian:spectrum_from_checkpoint",
}


def shipped() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load(name: str | Path, device: str = "cpu") -> Backbone:
    """The backbone of that name, `.safetensors` file or diffusers folder, on `device`, in evaluation mode;
    one that takes a single size is tiled, so that it takes any.

    Raises BackboneError when there is none, or it cannot be read.
    """
    path = WEIGHTS / f"{name}.safetensors" if str(name) in shipped() else Path(name)
    if path.is_dir():
        from noisebook.backbones.diffusers_unet import from_folder

        backbone = from_folder(path)
    elif path.is_file():
        kind, config, tensors = read_checkpoint(path)
        if kind not in KINDS:
            raise BackboneError(f"{path}: unknown kind of backbone {kind!r}; this version knows {', '.join(KINDS)}")
        module, function = KINDS[kind].split(":")
        build: Callable[..., Backbone] = getattr(importlib.import_module(module), function)
        backbone = build(config, tensors)
        backbone.name = path.stem
        backbone.fingerprint = fingerprint_of({"kind": kind, "config": config}, tensors)
    else:
        raise BackboneError(
            f"no backbone {str(name)!r}: give one of {', '.join(shipped())}, a .safetensors file, or a diffusers folder"
        )
    if backbone.size is not None:
        from noisebook.backbones.tiled import Tiled

        backbone = Tiled(backbone)
    return backbone.to(device).eval().requires_grad_(False)


__all__ = ["Backbone", "fingerprint_of", "load", "shipped"]
