"""The realism dial: at the very end a decoder may mix the mean with a convincing picture of the same tokens.

The solver `mean` gives the mean of all pictures that fit the tokens: the least squared error, and smoother than any of
them. A convincing picture is made of the state y and the level sigma at which the tokens end: by a realism network that
was trained for the backbone, which is also given the mean, or without one by the backbone itself, in ODE_STEPS Euler
steps of the probability-flow ODE (Song et al. 2021, arXiv 2011.13456). In squared error the best pictures between the two
are those on the straight line, (1 - r) mean + r convincing (Freirich et al. 2021, "A theory of the distortion-perception
tradeoff in Wasserstein space"). It is the decoder's choice: no token, and no bit of a file, depends on r.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones import Backbone
from noisebook.backbones.realism import LazyRealism, Realism
from noisebook.backbones.wrappers.tiled import tile_places
from noisebook.codec import tiles
from noisebook.codec.solvers import Denoiser, ending, solve_ode
from noisebook.errors import SpecError, printable
from noisebook.runtime.allocator import give_back
from noisebook.runtime.profiler import stage
from noisebook.runtime.progress import network_called
from noisebook.spec.schedule import known_levels, solver_levels
from noisebook.spec.spec import CodecSpec

ODE_STEPS = 4  # more lose squared error and gain little (bench/quality/dial.py); the first is made of the mean
MARGIN = 64  # pixels that a tile sees beyond what is taken of it: there the network's own padding shows


@dataclass(frozen=True)
class Dial:
    """How far a decode goes from the mean to the convincing picture, 0 < realism <= 1, and what makes that picture."""

    realism: float
    network: Realism | None
    calls: int  # of networks, beside the one that makes the mean

    @property
    def name(self) -> str:
        """What makes the convincing picture: the network's fingerprint, or `ode-` and the number of its steps."""
        return f"ode-{ODE_STEPS}" if self.network is None else self.network.fingerprint

    def __call__(self, mean: Tensor, y: Tensor, sigma: float, tiled: bool, model: Backbone, denoise: Denoiser) -> Tensor:
        """The mean and the state y [B, C, h, w], padded as the backbone takes them, the level sigma of y, the backbone, and
        what predicts from there -> the mixed picture [B, C, h, w]. `tiled`: tile by tile, for a large picture [1, C, h, w].
        """
        with stage("realism"):
            if self.network is None:
                mean = mean.clone() if tiled else mean  # of a large picture it lies where the next prediction is written
                convincing = _by_ode(mean, y, sigma, model, denoise)
            else:
                convincing = _padded(self.network, mean, y, sigma, tiled)
                network_called()
            mixed = torch.lerp(mean, convincing, self.realism, out=convincing)
        if tiled and mean.device.type == "cpu":
            give_back()
        return mixed


def dial_for(realism: Any, lazy: LazyRealism, backbone: Backbone, spec: CodecSpec, steps: int | None = None) -> Dial | None:
    """The dial of a decode of the first `steps` steps (None: all); None for realism 0, which loads nothing. Raises SpecError
    for another number than 0 ... 1 and where the decode does not end in a mean, BackboneError as `LazyRealism.of`."""
    value = checked(realism)
    if not value:
        return None
    solver, sigma, _, _ = ending(spec, steps)
    if solver != "mean":
        shortened = "" if solver == spec.solver else " of a codec without steps"
        raise SpecError(
            f"realism starts from the mean, and the solver{shortened} is {solver}, which is realistic already: decode with "
            "realism 0, or make the tokens with --solver mean"
        )
    if not 0 < sigma < math.inf:
        raise SpecError(
            f"realism needs a finite level above 0 where the tokens end, and they end at {sigma:g}: decode with realism 0, "
            "or make them with --sigma-min above 0"
        )
    network = lazy.of(backbone)
    return Dial(value, network, 1 if network else len(ode_levels(backbone, sigma)) - 1)


def checked(realism: Any) -> float:
    """A value of the dial. Raises SpecError for anything but a number from 0 to 1."""
    if not isinstance(realism, Real) or isinstance(realism, bool) or not 0 <= float(realism) <= 1:
        raise SpecError(
            f"realism is a number from 0 (the least error) to 1 (the most convincing picture), not {printable(realism, 60)}"
        )
    return float(realism)


def ode_levels(backbone: Backbone, sigma: float) -> tuple[float, ...]:
    """The levels below sigma of the Euler steps that make a convincing picture."""
    return known_levels(sigma, solver_levels(sigma, ODE_STEPS), backbone.round_sigma)


def _by_ode(mean: Tensor, y: Tensor, sigma: float, backbone: Backbone, denoise: Denoiser) -> Tensor:
    first, *rest = ode_levels(backbone, sigma)
    return solve_ode("euler", denoise, torch.lerp(mean, y, first / sigma), first, rest)


def _padded(network: Realism, mean: Tensor, y: Tensor, sigma: float, tiled: bool) -> Tensor:
    """network(mean, y, sigma) at any size: what it sees beyond its edges mirrors what is inside."""
    (height, width), multiple = mean.shape[2:], network.multiple
    bottom, right = -height % multiple, -width % multiple
    if bottom or right:
        mode = "reflect" if max(bottom, right) < min(height, width) else "replicate"
        mean, y = (F.pad(x, (0, right, 0, bottom), mode=mode) for x in (mean, y))
    convincing = over_tiles(network, mean, y, sigma) if tiled else network(mean, y, sigma)
    return convincing[:, :, :height, :width]


def over_tiles(network: Realism, mean: Tensor, y: Tensor, sigma: float) -> Tensor:
    """network(mean, y, sigma), tile by tile, for height and width that are multiples of the network's.

    Tiles begin on multiples, so that the network's grid lies as in the whole picture; of each, MARGIN pixels beside another
    tile are cut off, and what is left overlaps its neighbours, to which it is blended by ramps."""
    (height, width), multiple = mean.shape[2:], network.multiple
    side, overlap, margin = (-(-n // multiple) * multiple for n in (tiles.TILE, tiles.OVERLAP, MARGIN))
    if max(height, width) <= side + side // 2 or side <= overlap:
        return network(mean, y, sigma)
    tall, wide = min(side, height), min(side, width)
    out = torch.zeros_like(mean)
    for top, left, weight in tile_places(height, width, (tall, wide), overlap, y.device):
        above, before = min(top, margin), min(left, margin)
        a, b = slice(top - above, top + tall + margin), slice(left - before, left + wide + margin)
        found = network(mean[:, :, a, b].contiguous(), y[:, :, a, b].contiguous(), sigma)
        out[:, :, top : top + tall, left : left + wide] += found[:, :, above : above + tall, before : before + wide] * weight
    return out


__all__ = ["ODE_STEPS", "Dial", "checked", "dial_for"]
