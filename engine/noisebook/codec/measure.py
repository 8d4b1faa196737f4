"""Measures how well a backbone predicts at every noise level: the curve that schedules are made from (spec/curve.py)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones import Backbone
from noisebook.backbones.grid import probed
from noisebook.errors import SpecError
from noisebook.runtime.devices import own_defaults
from noisebook.runtime.pixels import from_uint8
from noisebook.spec.curve import Curve

HIGHEST, LOWEST, NODES = 64.0, 0.01, 49  # levels that `measure` measures at, evenly spaced in ln sigma


@own_defaults()
def measure(
    backbone: Backbone,
    batches: Sequence[Tensor],
    seed: int = 0,
    nodes: int = NODES,
    about: str = "",
    conditional: bool = False,
) -> Curve:
    """The curve of a backbone on images: batches uint8 [B, C, H, W], each of one size; one noise an image and level.
    `conditional`: of a backbone that is conditioned on its own tokens of the image.

    Levels are the backbone's own nearest to `nodes` even ones in ln sigma. Raises ImageError where a size does not fit,
    SpecError where the backbone has no condition."""
    if conditional and backbone.condition_grid is None:
        raise SpecError(f"backbone {backbone.name!r} has no condition tokens: only a CoD has")
    ratio = math.log(LOWEST / HIGHEST) / (nodes - 1)
    levels = sorted({backbone.round_sigma(HIGHEST * math.exp(ratio * i)) for i in range(nodes)}, reverse=True)
    noise = torch.Generator().manual_seed(seed)
    errors, power, count = np.zeros(len(levels)), 0.0, 0
    with torch.no_grad():
        for images in batches:
            height, width = images.shape[2:]
            padded = backbone.padded(height, width)
            x = F.pad(from_uint8(images), (0, padded[1] - width, 0, padded[0] - height), mode="replicate")
            x0 = backbone.encode(x.to(backbone.device))
            cond, known = None, torch.zeros_like(x0)
            if conditional:
                cond = backbone.condition(backbone.encode_condition(x.to(x0.device)).flatten(1), *padded)
                known = backbone(torch.randn(x0.shape, generator=noise).to(x0), math.inf, cond)
            power += float((x0 - known).square().mean()) * len(x0)
            for i, sigma in enumerate(levels):
                eps = torch.randn(x0.shape, generator=noise).to(x0)
                errors[i] += float((x0 - backbone(x0 + sigma * eps, sigma, cond)).square().mean()) * len(x0)
            count += len(x0)
    least, width = backbone.padded(1, 1)
    multiple = least if backbone.size else backbone.padded(least + 1, least + 1)[0] - least
    pixel = backbone.state_shape(*padded) == (backbone.channels, *padded) and width == least
    return Curve(
        backbone.name,
        backbone.fingerprint,
        tuple(levels),
        tuple(float(f"{v / count:.6g}") for v in errors),
        float(f"{power / count:.6g}"),
        multiple,
        least,
        backbone.channels if pixel else 0,
        about=about,
        condition=(backbone.condition_grid or ()) if conditional else (),
        levels=own_levels(backbone),
    )


def own_levels(backbone: Backbone) -> tuple[float, ...]:
    """The levels of a discrete-time model, falling, as far as `round_sigma` tells them; () of a model of continuous time."""
    return probed(backbone.round_sigma)[::-1]
