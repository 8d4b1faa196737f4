"""Large pictures: above 2^24 dimensions the network runs over overlapped tiles, and where that loses nothing at a lower
resolution.

Averages of 2 x 2 pixels of y = x0 + sigma eps are a picture of half the size at half the noise-to-signal ratio. What the
network finds there is all that can be found where sigma is so high that no detail shows, or where the picture has none: most
photographs of a telephone do not. A level runs at 1/2, 1/4, ... of the resolution as long as sigma there stays at or above
1. Below that the encoder tries both on some crops, and says in tokens of the stream up to which step the lower one is as
good: `CodecSpec.resolutions`.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones import Backbone
from noisebook.backbones.wrappers.tiled import tile_places
from noisebook.errors import BackboneError
from noisebook.runtime.allocator import give_back
from noisebook.runtime.profiler import stage
from noisebook.runtime.progress import network_called

TILE, OVERLAP = 512, 64  # pixels; tiles of that size stay in the cache of a CPU
HIGH = 1.0  # noise-to-signal ratio above which a lower resolution loses nothing
COARSEST = 5  # octaves
LEAST = 64  # pixels of the shorter side at the lowest resolution
CROPS, CROP = 3, 384  # of the picture, on each axis, on which the encoder tries: how many, and their side in pixels
WORSE, LAST_WORSE = 1.02, 1.003  # times the squared error that the lower resolution may have: at a step, and at the end
SMALL = 1 << 26  # parameters of a network that is kept in bfloat16 as well


def network_for(backbone: Backbone) -> Backbone:
    """What predicts for large pictures: on a CPU that computes in bfloat16 a copy that does, of a network that is not too
    large to be copied; the backbone itself otherwise."""
    if backbone.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return backbone
    if sum(p.numel() for p in backbone.parameters()) > SMALL:
        return backbone
    try:
        return copy.deepcopy(backbone).accelerate("bfloat16", channels_last=True)
    except (BackboneError, TypeError, RuntimeError):  # no network, or one that cannot be copied
        return backbone


@dataclass
class Look:
    """x0_hat of a large picture: look(y [1, C, h, w], sigma, level), level counting the steps of the schedule.

    up_to   for 1/2, 1/4, ... of the resolution: how many levels run at it, or lower
    """

    network: Backbone
    up_to: Sequence[int] = ()
    out: Tensor | None = field(default=None, repr=False)  # memory for what is found, used again at each step

    def octaves(self, sigma: float, level: int, size: tuple[int, int]) -> int:
        """How often the resolution is halved."""
        if not self.network.on_pixels or self.network.size is not None:
            return 0
        found = sum(level < count for count in self.up_to)
        while sigma < math.inf and sigma / 2**found >= 2 * HIGH and found < COARSEST:
            found += 1
        while found and min(size) >> found < LEAST:
            found -= 1
        return found

    def __call__(self, y: Tensor, sigma: float, level: int) -> Tensor:
        if self.out is None or self.out.shape != y.shape:
            self.out = torch.empty_like(y)
        with stage("network"):
            octaves = self.octaves(sigma, level, (y.shape[2], y.shape[3]))
            x0_hat = predict(self.network, y, sigma, octaves, self.out)
        network_called()
        if y.device.type == "cpu":
            give_back()
        return x0_hat


def predict(network: Backbone, y: Tensor, sigma: float, octaves: int, out: Tensor) -> Tensor:
    """x0_hat of y [1, C, h, w] at `octaves` halvings of the resolution, written into `out`, which is given back."""
    if not octaves:
        return over_tiles(network, y, sigma, out)
    factor = 2**octaves
    small = F.avg_pool2d(y, factor, ceil_mode=True, count_include_pad=False)
    level = sigma if sigma == math.inf else network.round_sigma(sigma / factor)
    found = over_tiles(network, small * factor if sigma == math.inf else small, level, torch.empty_like(small))
    return enlarge(found, factor, out)


def enlarge(small: Tensor, factor: int, out: Tensor) -> Tensor:
    """Bicubic, into `out` [1, C, h, w]; strip by strip, so that no second picture of that size is made."""
    (height, width), rows, margin = out.shape[2:], max(1, (TILE * TILE * 16) // (out.shape[3] * factor)), 3
    for top in range(0, small.shape[2], rows):
        first, last = max(0, top - margin), min(small.shape[2], top + rows + margin)
        strip = F.interpolate(small[:, :, first:last], scale_factor=factor, mode="bicubic")
        begin, end = top * factor, min(height, (top + rows) * factor)
        out[:, :, begin:end] = strip[:, :, begin - first * factor : end - first * factor, :width]
    return out


def over_tiles(network: Backbone, y: Tensor, sigma: float, out: Tensor) -> Tensor:
    """x0_hat of y [1, C, h, w], tile by tile, blended by ramps over OVERLAP pixels, written into `out`."""
    (height, width), padded = y.shape[2:], network.padded(*y.shape[2:]) if network.on_pixels else tuple(y.shape[2:])
    if padded != (height, width):
        right, bottom = padded[1] - width, padded[0] - height
        y = F.pad(y, (0, right, 0, bottom), mode="reflect" if max(right, bottom) < min(height, width) else "replicate")
        return out.copy_(over_tiles(network, y, sigma, torch.empty_like(y))[:, :, :height, :width])
    if max(height, width) <= TILE + TILE // 2 or not network.on_pixels or network.size is not None:
        return out.copy_(network(y, sigma))
    tall, wide = min(TILE, height), min(TILE, width)
    out.zero_()
    for top, left, weight in tile_places(height, width, (tall, wide), OVERLAP, y.device):
        a, b = slice(top, top + tall), slice(left, left + wide)
        out[:, :, a, b] += network(y[:, :, a, b].contiguous(), sigma).mul_(weight)
    return out


def resolutions_for(network: Backbone, crops: Tensor, levels: Sequence[float], count: int, most: int) -> list[int]:
    """What an encoder says: for each of `count` halvings the number of levels, at most `most`, that may run at it. Both are
    tried on `crops_of` the picture, in [-1, 1], with the same noise; what may run lower at one level may at all that are
    noisier, so that the number is found by bisection."""
    found = [0] * count
    if not network.on_pixels or network.size is not None:
        return found
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0)).to(crops)

    def fits(level: int, octaves: int) -> bool:
        sigma, errors = levels[level], []
        if sigma == math.inf or sigma / 2 ** (octaves - 1) >= 2 * HIGH:
            return True
        for r in (octaves - 1, octaves):
            error = 0.0
            for crop, eps in zip(crops.split(1), noise.split(1), strict=True):
                guess = predict(network, crop + sigma * eps, sigma, r, torch.empty_like(crop))
                error += float((guess - crop).square().mean())
            errors.append(error)
        return errors[1] <= errors[0] * (LAST_WORSE if level == len(levels) - 1 else WORSE)

    for k in range(count):
        low, high = 0, min(most, len(levels)) if k == 0 else found[k - 1]  # levels below `low` fit, that at `high` does not
        if high and fits(high - 1, k + 1):
            low = high
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle - 1, k + 1) else (low, middle)
        found[k] = low
    return found


def crops_of(x0: Tensor) -> Tensor:
    """CROPS x CROPS parts of a picture [1, C, h, w], evenly spread: [n, C, side, side]."""
    height, width = x0.shape[2:]
    tall, wide = min(CROP, height), min(CROP, width)
    tops = [round((height - tall) * i / (CROPS - 1)) for i in range(CROPS)]
    lefts = [round((width - wide) * i / (CROPS - 1)) for i in range(CROPS)]
    return torch.cat([x0[:, :, a : a + tall, b : b + wide] for a in tops for b in lefts])
