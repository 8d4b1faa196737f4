"""Which backbones there are: the kinds of checkpoint, the shipped names, and how a name is turned into a backbone.

A new kind of checkpoint is a file in `families/` or `nets/` with a function (config, tensors, options) -> Backbone, and one
line in `KINDS`. Everything imported here is light: diffusers and transformers are imported when a model of theirs is built.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from noisebook.backbones.base import Backbone, accelerate, identify, network_dtype
from noisebook.backbones.checkpoint import MISFIT, check_config, one_line, read_checkpoint
from noisebook.backbones.cod import cod
from noisebook.backbones.cod.files import load_published, read_published
from noisebook.backbones.diffusers.folder import from_folder, from_hub
from noisebook.backbones.factory import made_by
from noisebook.backbones.nets import convnet, gaussian, nvidia_edm, unet
from noisebook.backbones.precision import AUTO, auto_dtype, multiplies_bfloat16
from noisebook.backbones.wrappers.reparameterised import ddpm_view, flow_view
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.errors import BackboneError, NoisebookError, printable
from noisebook.runtime.devices import own_defaults, usable_device
from noisebook.runtime.factories import is_factory
from noisebook.runtime.limits import DEFAULT

WEIGHTS = Path(__file__).parent / "weights"
REALISM = ".realism.safetensors"  # how the names of realism networks end, which are beside their backbones: see realism.py

# kind of checkpoint -> what builds the backbone from (config, tensors) and the options of `load` that it takes
KINDS: dict[str, Callable[..., Backbone]] = {
    "convnet": convnet.from_checkpoint,
    "cod": cod.from_checkpoint,
    "dct-prior": gaussian.dct_from_checkpoint,
    "nvidia-edm": nvidia_edm.from_checkpoint,
    "pca-prior": gaussian.pca_from_checkpoint,
    "spectrum-prior": gaussian.spectrum_from_checkpoint,
    "unet": unet.from_checkpoint,
}
# shipped name that is a view of shipped weights, possibly of weights of its own -> (the view, the name of the weights)
VIEWS: dict[str, tuple[Callable[[Backbone], Backbone], str]] = {
    "cifar10-ddpm": (ddpm_view, "cifar10-edm"),
    "cifar10-flow": (flow_view, "cifar10-flow"),
}
# shipped name -> what it is for; its card, the .md beside the weights, says more
ABOUT_SHIPPED = {
    "cifar10-cod": "32 x 32 pictures such as CIFAR-10's; a condition codec (CoD)",
    "cifar10-consistency": "32 x 32 pictures such as CIFAR-10's; a consistency model",
    "cifar10-ddpm": "32 x 32 pictures such as CIFAR-10's; DDPM",
    "cifar10-edm": "32 x 32 pictures such as CIFAR-10's; EDM",
    "cifar10-flow": "32 x 32 pictures such as CIFAR-10's; rectified flow",
    "gaussian-prior": "photographs of any size; a baseline without a network",
    "photo": "photographs of any size; for files from before photo-2",
    "photo-2": "photographs of any size; the default",
}


def shipped() -> list[str]:
    """Names of the backbones that come with the package."""
    files = {path.stem for path in WEIGHTS.glob("*.safetensors") if not path.name.endswith(REALISM)}
    return sorted(files | set(VIEWS))


@own_defaults()
def load(name: str | Path, device: str = "cpu", accelerated: Mapping[str, Any] | None = None, **options: Any) -> Backbone:
    """The backbone of that name, file, folder, hub id or factory (MODULE:FACTORY, whose code is run), on `device`, in
    evaluation mode; a pixel model that takes only one size is tiled, so that it takes any, unless a factory made it.

    accelerated   arguments of `Backbone.accelerate`, which is called with them unless they change nothing: weights of a
             folder are then read straight into that dtype. Its dtype may be `auto`: see docs/performance.md
    options  what a model is conditioned on: `prompt`, `negative_prompt`, `guidance`, `label`; `variant` of a model's weight
             files; and `autoencoder` of a latent CoD; see docs/backbones.md

    Raises BackboneError when there is none, it cannot be read, or it does not know an option; SpecError for a device that
    torch cannot use.
    """
    usable_device(device)
    how = dict(accelerated or {})
    if auto := how.get("dtype") == AUTO:  # of a folder, see `NetworkBackbone.auto_bfloat16`
        how["dtype"] = "bfloat16" if torch.device(device).type == "cuda" and multiplies_bfloat16(device) else "float32"
    there = {"device": torch.device(device), "dtype": network_dtype(how.get("dtype", torch.float32))}
    backbone = _find(str(name), {key: value for key, value in options.items() if value is not None}, there)
    if backbone.size is not None and not all(type(n) is int and n > 0 for n in backbone.size):
        raise BackboneError(f"{printable(name, 200)}: its size is {printable(backbone.size, 100)}, not two whole numbers")
    if backbone.size is not None and math.prod(backbone.size) > DEFAULT.pixels:
        raise BackboneError(f"{printable(name, 200)}: it takes only {backbone.size} pixels, more than {DEFAULT.pixels:,}")
    own = backbone.factory  # what a factory gives is what a caller's own object would be
    if not own and backbone.size is not None and backbone.state_shape(*backbone.size) == (backbone.channels, *backbone.size):
        backbone = Tiled(backbone)
    if auto:
        how["dtype"] = auto_dtype(backbone, device)
    return accelerate(backbone.to(device).eval().requires_grad_(False), how)


def load_recorded(name: str, device: str = "cpu", **options: Any) -> Backbone:
    """The backbone that a file asks for: as `load`, but only by a shipped name. A file's own words open no path and reach no
    hub, and no module is imported. Raises BackboneError for any other name, and as `load`."""
    if name not in shipped():
        trusted = name if is_factory(name) else "NAME"
        raise BackboneError(
            f"the file asks for the backbone {printable(repr(name), 200)}, which does not come with noisebook, and a file "
            f"cannot choose what is opened, downloaded or imported: give --backbone {trusted} if you trust it (in "
            "Python: backbone=)"
        )
    return load(name, device, **options)


def _find(name: str, options: dict[str, Any], there: dict[str, Any]) -> Backbone:
    """The backbone of that name, as its adapter makes it; `there` says where and as what the weights of folders are put."""
    if name in VIEWS:
        view, weights = VIEWS[name]
        backbone = view(_read(WEIGHTS / f"{weights}.safetensors", options))
        backbone.name = name
        return backbone
    path = WEIGHTS / f"{name}.safetensors" if name in shipped() else Path(name)
    if "\0" in name or len(os.fsencode(path.name)) > 255:
        raise BackboneError(f"no backbone {printable(name, 100)!r}: no file can have that name")
    if is_factory(name) and not path.exists():
        if options:
            raise BackboneError(f"the factory {name} takes no {', '.join(options)}: it is called without arguments")
        return made_by(name)
    if path.is_file() and path.suffix in (".pt", ".ckpt"):
        if other := sorted(set(options) - {"guidance", "autoencoder"}):
            read_published(path)  # says what else the file is
            raise BackboneError(f"{path}: a published CoD takes guidance and autoencoder, not {', '.join(other)}")
        return load_published(path, **options)
    if path.is_file():
        return _read(path, options)
    known = ["prompt", "negative_prompt", "guidance", "label", "variant", *(() if path.is_dir() else ("revision",))]
    if not set(options) <= set(known):
        raise BackboneError(f"{name} takes the options {', '.join(known)}, not {', '.join(sorted(options))}")
    if path.is_dir():
        try:
            return from_folder(path, **options, **there)
        except (NoisebookError, torch.OutOfMemoryError):  # of the device: not the folder's fault
            raise
        except MISFIT as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            raise BackboneError(f"{printable(path, 200)}: its files do not make a model ({reason})") from error
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return from_hub(name, **options, **there)
    raise BackboneError(
        f"no backbone {printable(name, 200)!r}: give one of {', '.join(shipped())}, a .safetensors file, a diffusers "
        "folder, a hub's OWNER/NAME, or MODULE:FACTORY of your own"
    )


def _read(path: Path, options: dict[str, Any]) -> Backbone:
    """The backbone in a checkpoint of noisebook's."""
    kind, config, tensors = read_checkpoint(path)
    if kind == "realism":
        raise BackboneError(
            f"{path}: a realism network, which finishes the decodes of a backbone and is none: give it as --realism-network "
            "FILE (in Python: realism_network=) beside the backbone"
        )
    if kind not in KINDS:
        raise BackboneError(
            f"{path}: unknown kind of backbone {printable(kind, 60)!r}; this version knows {', '.join(KINDS)}"
        )
    try:
        call = signature(KINDS[kind]).bind(config, tensors, **options)
    except TypeError as error:
        raise BackboneError(f"{path}: a backbone of kind {kind!r} takes no {', '.join(options)}") from error
    try:
        check_config(config, tensors)
        backbone = KINDS[kind](*call.args, **call.kwargs)
    except NoisebookError:
        raise
    except MISFIT as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BackboneError(f"{path}: config and tensors do not make a backbone of kind {kind!r} ({reason})") from error
    identify(backbone, path, kind, config, tensors, options)
    return backbone
