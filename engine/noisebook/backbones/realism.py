"""Realism networks as a codec uses them: found beside the backbone or in the user's file, loaded when first asked for.

A file is a checkpoint of kind `realism` (nets/realism.py). It is found by the fingerprint of its backbone, as curves are:
what it says of other files is never opened.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.base import AS_IT_IS, Backbone, fingerprint_of, network_dtype
from noisebook.backbones.checkpoint import MISFIT, check_config, one_line, read_checkpoint
from noisebook.backbones.nets.convnet import accelerate_network
from noisebook.backbones.nets.realism import RealismNetwork, from_checkpoint
from noisebook.backbones.registry import REALISM, WEIGHTS
from noisebook.errors import BackboneError, printable

KIND = "realism"
FINGERPRINT = re.compile("[0-9a-f]{64}")


class Realism(nn.Module):
    """realism(mean, y, sigma) -> the convincing picture, wherever the tensors are: the work is done where its weights live.

    fingerprint   SHA-256 over config and weights: which network it is
    backbone      fingerprint of the backbone that it was trained for; "" where the file names none
    """

    def __init__(self, net: RealismNetwork, fingerprint: str = "", backbone: str = ""):
        super().__init__()
        self.net, self.fingerprint, self.backbone = net, fingerprint, backbone

    @property
    def multiple(self) -> int:
        """Height and width of the pictures that it takes are multiples of this."""
        return self.net.multiple

    def forward(self, mean: Tensor, y: Tensor, sigma: float) -> Tensor:
        """mean and y float32 [B, C, H, W], the level 0 < sigma < inf at which the tokens end -> float32 [B, C, H, W].
        Nothing is read back from the device: it can be part of a CUDA graph."""
        there = next(self.parameters()).device
        level = torch.full((len(mean),), sigma, device=there)
        return self.net(mean.to(there), y.to(there), level).to(mean.device)

    def accelerate(self, dtype: torch.dtype | str, channels_last: bool, compile: bool) -> None:
        """As `Backbone.accelerate`."""
        accelerate_network(self.net, network_dtype(dtype), channels_last, compile)


def read_realism(path: str | Path) -> Realism:
    """The realism network in a file, in float32 on the CPU. Raises BackboneError, in one line, for any other file."""
    shown = printable(path, 300)
    if not os.path.isfile(path):
        raise BackboneError(
            f"{shown}: no such file: a realism network is a .safetensors file that was trained for the backbone"
        )
    kind, config, tensors = read_checkpoint(path)
    if kind != KIND:
        raise BackboneError(
            f"{shown}: a checkpoint of kind {printable(kind, 60)!r} and no realism network: give the file that was trained "
            "for the backbone, or decode with realism 0"
        )
    backbone = config.get("fingerprint", "")
    try:
        if not (isinstance(backbone, str) and (not backbone or FINGERPRINT.fullmatch(backbone))):
            raise ValueError("the fingerprint is not 64 hex digits")
        check_config(config, tensors)
        net = from_checkpoint(config, tensors)
    except MISFIT as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BackboneError(f"{shown}: config and tensors do not make a realism network ({reason})") from error
    return Realism(net, fingerprint_of({"kind": kind, "config": config}, tensors), backbone)


def shipped_realism(backbone: Backbone) -> Path | None:
    """The file of the realism network that came with a backbone: by its name; `LazyRealism` compares the fingerprints."""
    files = {path.name.removesuffix(REALISM): path for path in WEIGHTS.glob(f"*{REALISM}")}
    return files.get(backbone.name)


class LazyRealism:
    """The realism network of a codec, or of several codecs of one backbone: read when it is first asked for, and kept.

    path   a file that the user names; None: the one that came with the backbone, if any
    """

    def __init__(self, path: str | Path | None = None):
        self.path = path
        self._made: dict[tuple, Realism | None] = {}

    def of(self, backbone: Backbone) -> Realism | None:
        """The network for a backbone, on its device, computing as it does; None where none came with the backbone and the
        user names none. Raises BackboneError where the file is another backbone's, of other channels, or none, and where
        the user names one for a backbone that does not work on pixels."""
        if not backbone.on_pixels and self.path is not None:
            raise BackboneError(
                f"backbone {backbone.name!r} works on latents, and realism networks on pixels: leave out --realism-network "
                "(in Python: realism_network=)"
            )
        how = backbone.acceleration
        key = (backbone.fingerprint, str(backbone.device), *sorted((name, str(value)) for name, value in how.items()))
        if key not in self._made:
            self._made[key] = self._load(backbone, how)
        return self._made[key]

    def _load(self, backbone: Backbone, how: Mapping[str, Any]) -> Realism | None:
        path = self.path if self.path is not None else shipped_realism(backbone)
        if path is None:
            return None
        found = read_realism(path)
        if self.path is None and not (found.backbone and backbone.answers_to(found.backbone)):
            return None  # a backbone of the same name
        if found.backbone and not backbone.answers_to(found.backbone):
            raise BackboneError(
                f"{printable(path, 300)}: a realism network of another backbone ({found.backbone[:16]}) than "
                f"{backbone.name!r} ({backbone.fingerprint[:16]}): give the file that was trained for this one"
            )
        if found.net.channels != backbone.channels:
            raise BackboneError(
                f"{printable(path, 300)}: a realism network of {found.net.channels} channels, and backbone "
                f"{backbone.name!r} has {backbone.channels}: give the file that was trained for it"
            )
        if {**AS_IT_IS, **how} != AS_IT_IS:
            found.accelerate(**how)
        return found.to(backbone.device)


__all__ = ["LazyRealism", "Realism", "read_realism", "shipped_realism"]
