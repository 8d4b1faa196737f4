"""NVIDIA's EDM checkpoints (Karras et al. 2022, arXiv 2206.00364): a converter that runs no code of theirs, and adapters.

noisebook convert edm-cifar10-32x32-uncond-vp.pkl -o cifar10-vp.safetensors

The published files are pickles that carry their own source code, which unpickling would execute. Here they are read into
inert records: only the names in `ALLOWED` are known, none of them runs anything of the file's, and all others are refused.
The networks have a licence of their own: mind it when you publish what they made.
"""

import io
import math
import mmap
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.families.network import NetworkBackbone, full
from noisebook.backbones.nets.song_unet import DhariwalUNet, SongUNet
from noisebook.errors import BackboneError

NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
# What each preconditioning is made of besides its network: numbers, and tensors
CONSTANTS = {"VPPrecond": ("beta_d", "beta_min", "M"), "VEPrecond": (), "EDMPrecond": ("sigma_data",), "iDDPMPrecond": ()}
TRAINING_ONLY = ("dropout", "label_dropout")


class VP(NetworkBackbone):
    """x0_hat = y - sigma F(c_in y, c_noise): variance preserving (table 1 of the paper, column VP; Song et al. 2021).

    c_in = (1 + sigma^2)^-1/2; c_noise = (M - 1) t where t is the time at which sigma^2 = exp(beta_d t^2 / 2 +
    beta_min t) - 1."""

    def __init__(self, net: torch.nn.Module, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000, **shape: Any):
        super().__init__(net, **shape)
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any sigma > 0 -> x0_hat, same shape and dtype."""
        t = (math.sqrt(self.beta_min**2 + 2 * self.beta_d * math.log1p(sigma * sigma)) - self.beta_min) / self.beta_d
        return y - sigma * self.call(y * (1 + sigma * sigma) ** -0.5, full(y, (self.M - 1) * t))


class VE(NetworkBackbone):
    """x0_hat = y + sigma F(y, ln(sigma / 2)): variance exploding (table 1 of the paper, column VE; Song et al. 2021)."""

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any sigma > 0 -> x0_hat, same shape and dtype."""
        return y + sigma * self.call(y, full(y, math.log(0.5 * sigma)))


# ---- reading a pickle without running it --------------------------------------------------------------------------------
class Record:
    """An object of a pickle: what it calls its class, and its state."""

    def __init__(self, name: str = "", state: Any = None):
        self.name, self.state = name, state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _persistent(meta: Mapping[str, Any]) -> Record:
    """An object that carries its source code, which is dropped."""
    return Record(meta["class_name"], meta["state"])


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of the storage; torch checks that it lies inside."""
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    if math.prod(size) > len(flat):  # a stride of 0 would make much of little
        raise BackboneError(f"a tensor {list(size)} is larger than what is stored of it")
    return flat.as_strided(size, stride, offset)


def _number(dtype: Record, data: bytes) -> float:
    """A numpy scalar."""
    return struct.unpack("<" + {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}[dtype.name], data)[0]


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): dict,
    ("numpy", "dtype"): lambda code, *_: Record(code),
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.nn.modules.container", "ModuleDict"): Record,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
}


class Unpickler(pickle.Unpickler):
    """Knows ALLOWED and nothing else. Raises BackboneError for any other class or function."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise BackboneError(f"it holds a {module_name}.{global_name}, which no EDM checkpoint needs") from None


def read_pickle(path: str | Path) -> Any:
    """What a pickle holds, its objects as Records and its tensors on the CPU; no code of the file's is run.

    Raises BackboneError where it cannot be read, is damaged, or holds something that is not in ALLOWED.
    """
    try:
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for count, (opcode, place, _) in enumerate(pickletools.genops(cast(IO[bytes], data))):
                if "PUT" in opcode.name and (place or 0) > count:  # the memo is a list as long as its largest place
                    raise BackboneError("a place in its memo is too large")
            data.seek(0)
            return Unpickler(data).load()
    except Exception as error:  # a damaged pickle raises what it likes
        raise BackboneError(f"{path}: no EDM checkpoint, or a damaged one ({' '.join(str(error).split())[:200]})") from error


def tensors_of(module: Record, prefix: str = "", seen: set[int] | None = None) -> dict[str, Tensor]:
    """The state dict of a pickled torch module. Raises BackboneError where a module is inside itself or in two places."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        raise BackboneError(f"the module at {prefix!r} is somewhere else, too")
    seen.add(id(module))
    found = {prefix + k: v for kind in ("_parameters", "_buffers") for k, v in module.state[kind].items() if v is not None}
    for name, child in module.state["_modules"].items():
        if child is not None:
            found |= tensors_of(child, f"{prefix}{name}.", seen)
    return found


def plain(value: Any) -> Any:
    """A number, string or list of them, as JSON has them. Raises TypeError for anything else."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a setting is a {type(value).__name__}")


def convert(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A published .pkl -> (config, tensors) of a checkpoint of kind `nvidia-edm`, its names those of the file's network.

    Raises BackboneError where there is no such network in it, or one that `from_checkpoint` cannot build.
    """
    data = read_pickle(path)
    try:
        ema = data["ema"]
        model = ema.state["_modules"]["model"]
        if ema.name not in CONSTANTS or model.name not in NETWORKS:
            raise BackboneError(f"a {ema.name} of a {model.name} is not read")
        options = {k: plain(v) for k, v in model.state["_init_kwargs"].items() if k not in TRAINING_ONLY}
        constants = {k: plain(ema.state[k]) for k in CONSTANTS[ema.name]}
        config = {"precond": ema.name, "constants": constants, "network": model.name, "options": options}
        tensors = tensors_of(ema)
    except (BackboneError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = error if isinstance(error, BackboneError) else f"{type(error).__name__}: {error}"
        raise BackboneError(f"{path}: no network of NVIDIA's EDM is in it ({reason})") from error
    from_checkpoint(config, tensors, label=0 if options.get("label_dim") else None)
    return config, tensors


# ---- checkpoints of kind nvidia-edm -------------------------------------------------------------------------------------
def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor], label: int | None = None) -> Backbone:
    """The denoiser of a checkpoint of kind `nvidia-edm`; `label` is the class of a class-conditional one, from 0.

    Raises BackboneError where config and tensors do not fit, or the label is missing, too large, or one too many.
    """
    try:
        options, precond = config["options"], config["precond"]
        with torch.device("meta"):
            net = NETWORKS[config["network"]](**options)
        inner = {name.removeprefix("model."): t.float() for name, t in tensors.items() if name != "u"}
        net.load_state_dict(inner, assign=True)
        size, shape = options["img_resolution"], {"channels": options["in_channels"]}
        shape["size"] = (size, size)
        if precond == "iDDPMPrecond":  # u holds its levels, the highest first and 0 at last
            backbone = DDPM(net, [1 / (1 + u * u) for u in reversed(tensors["u"].tolist()[:-1])], **shape)
        else:
            kinds = {"VPPrecond": VP, "VEPrecond": VE, "EDMPrecond": EDM}
            backbone = kinds[precond](net, **config["constants"], **shape)
        classes = options.get("label_dim", 0)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, ArithmeticError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BackboneError(f"config and tensors do not make a network of NVIDIA's EDM ({reason})") from error
    if backbone.channels not in (1, 3):
        raise BackboneError(f"a network of {backbone.channels} channels; only 1 or 3 are read")
    if classes and label not in range(classes):
        raise BackboneError(f"this network is conditioned on one of {classes} classes: give label=0 to {classes - 1}")
    if not classes and label is not None:
        raise BackboneError("this network is unconditional: leave the label out")
    net.label = label
    return backbone


def convert_file(path: Path, output: Path) -> str:
    """Converts a published `.pkl`, or a snapshot of NVIDIA's training; what it was, in words. Raises BackboneError."""
    config, tensors = convert(path)
    write_checkpoint(output, "nvidia-edm", config, tensors)
    options = config["options"]
    size, classes = options["img_resolution"], options.get("label_dim", 0) or "no"
    return f"{config['network']} ({config['precond']}), {size} pixels square, {classes} classes"
