"""How far two pictures are apart for the first blocks of a trained network such as VGG16: a loss, and never a judge."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from noisebook.errors import BackboneError, TrainingError, first_line, printable
from noisebook.images.judges.networks import named, read_tensors

BLOCKS = 3  # of convolutions up to a pooling layer; VGG16's first three end with relu1_2, relu2_2 and relu3_3
KEY = re.compile(r"(?:features\.)?(\d+)\.(weight|bias)")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]: LPIPS (Zhang et al. 2018)


class Trunk(nn.Module):
    """Images [B, 3 or 1, H, W] in [-1, 1] -> the features [B, C, h, w] at the end of each block of convolutions."""

    shift: Tensor
    scale: Tensor

    def __init__(self, blocks: list[nn.Sequential]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


def distance(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """LPIPS without its trained weights: features are scaled to unit length at each place; the squared difference, summed
    over channels and blocks, averaged over places. Float32 [B]."""
    total = torch.zeros(len(one[0]), device=one[0].device)
    for a, b in zip(one, other, strict=True):
        total = total + (_unit(a) - _unit(b)).square().sum(1).mean((1, 2))
    return total


def _unit(features: Tensor) -> Tensor:
    x = features.float()
    return x * (x.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def read_trunk(path: str | Path) -> tuple[Trunk, str]:
    """(the first blocks of the network in a file, the file's SHA-256 in hex). The file is a state dict of torchvision's
    layout, `features.N.weight` and `.bias` where N counts convolutions, ReLUs and pooling layers; as .safetensors, or as
    torch writes it, of which nothing but tensors is read. Raises TrainingError for any other file, BackboneError where it
    cannot be read."""
    digest = named(Path(path)).sha256
    try:
        trunk = build_trunk(read_tensors([Path(path)]))
    except (BackboneError, RuntimeError, ValueError) as error:
        reason = "it is no file of tensors only" if isinstance(error, BackboneError) else first_line(error)
        raise TrainingError(
            f"{printable(path)}: no state dict of VGG16 ({reason}): give torchvision's file, or its `features.N.weight`"
        ) from error
    return trunk.eval().requires_grad_(False), digest


def build_trunk(tensors: Mapping[str, Tensor]) -> Trunk:
    """The first blocks from a state dict, see `read_trunk`. Raises ValueError where it is none of such a network."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if match := KEY.fullmatch(key):
            layers.setdefault(int(match[1]), {})[match[2]] = value.float()
    blocks: list[list[nn.Module]] = []
    channels, before = 3, -3
    for place in sorted(layers):
        if place - before not in (2, 3):
            raise ValueError(f"there is no convolution before place {place}")
        if place - before == 3:  # what lies between is a ReLU and a pooling layer
            if len(blocks) == BLOCKS:
                break
            blocks.append([nn.MaxPool2d(2)] if blocks else [])
        layer = layers[place]
        if set(layer) != {"weight", "bias"} or layer["weight"].shape[1:] != (channels, 3, 3):
            raise ValueError(f"place {place} is no 3 x 3 convolution of {channels} channels")
        convolution = nn.Conv2d(channels, len(layer["weight"]), 3, padding=1)
        convolution.load_state_dict(layer)
        blocks[-1] += [convolution, nn.ReLU()]
        channels, before = convolution.out_channels, place
    if not blocks:
        raise ValueError("it has no `features.0.weight`")
    return Trunk([nn.Sequential(*block) for block in blocks])
