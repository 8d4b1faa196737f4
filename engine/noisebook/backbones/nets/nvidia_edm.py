"""NVIDIA's EDM checkpoints (Karras et al. 2022, arXiv 2206.00364): adapters of their networks, and a converter.

noisebook convert edm-cifar10-32x32-uncond-vp.pkl -o cifar10-vp.safetensors

The published files are pickles; `nvidia_pickle` reads them without running their code. The networks have a licence of their
own: mind it when you publish what they made.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.backbones.checkpoint import one_line, write_checkpoint
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.families.network import NetworkBackbone, full
from noisebook.backbones.nets.nvidia_pickle import plain, read_pickle, tensors_of
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
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BackboneError(f"config and tensors do not make a network of NVIDIA's EDM ({reason})") from error
    if backbone.channels not in (1, 3):
        raise BackboneError(f"a network of {backbone.channels} channels; only 1 or 3 are read")
    if classes and label not in range(classes):
        raise BackboneError(f"this network is conditioned on one of {classes} classes: give label=0 to {classes - 1}")
    if not classes and label is not None:
        raise BackboneError("this network is unconditional: leave the label out")
    net.label = label
    return backbone


def convert_file(path: Path, output: Path, replace: bool = True) -> str:
    """Converts a published `.pkl`, or a snapshot of NVIDIA's training; what it was, in words. Raises BackboneError."""
    config, tensors = convert(path)
    write_checkpoint(output, "nvidia-edm", config, tensors, replace)
    options = config["options"]
    size, classes = options["img_resolution"], options.get("label_dim", 0) or "no"
    return f"{config['network']} ({config['precond']}), {size} pixels square, {classes} classes"
