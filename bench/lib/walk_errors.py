"""How far a network's predictions are off on a codec's own walk, over how far on ideal states y = x0 + sigma eps.

A coder that delivers what DDPM's posterior asks for leads through states that are as good as ideal ones: the ratio is 1.
A coder that delivers less leaves an error that the network does not expect, and the ratio is above 1.
"""

import math
import zlib
from typing import Any, Self

import torch
from torch import Tensor

from noisebook.backbones import Backbone


class Watched:
    """While it is open: for each call of a backbone, its level and the squared error of its prediction of `x0` [B, C, H, W],
    float64 [B] a dimension. Graphs would hide the calls."""

    def __init__(self, backbone: Backbone, x0: Tensor):
        self.backbone, self.x0 = backbone, x0
        self.calls: list[tuple[float, Tensor]] = []

    def __enter__(self) -> Self:
        self.handle = self.backbone.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _note(self, _: Any, args: tuple[Any, ...], x0_hat: Tensor) -> None:
        error = (self.x0 - x0_hat).double().square().flatten(1).mean(1)
        self.calls.append((float(args[1]), error.cpu()))

    def ratios(self, ideal: dict[str, float] | None = None) -> list[tuple[float, float]]:
        """(sigma, mean error of this walk over that of ideal states of the same pictures) of each call. `ideal` keeps what
        was found at a level, for other walks of the same pictures."""
        ideal = {} if ideal is None else ideal
        return [(sigma, float(own.mean()) / self._ideal(sigma, ideal)) for sigma, own in self.calls]

    def _ideal(self, sigma: float, known: dict[str, float]) -> float:
        level = f"{sigma:.5g}"
        if level not in known:
            source = torch.Generator(self.x0.device).manual_seed(zlib.crc32(level.encode()))
            eps = torch.randn(self.x0.shape, device=self.x0.device, generator=source)
            x0_hat = self.backbone(self.x0 + sigma * eps, sigma)
            known[level] = float((x0_hat - self.x0).double().square().mean())
        return known[level]


def typical(ratios: list[tuple[float, float]]) -> float:
    """The geometric mean over all calls but the first, whose state no token has led to."""
    rest = [ratio for _, ratio in ratios[1:]] or [ratio for _, ratio in ratios]
    return math.exp(sum(map(math.log, rest)) / len(rest))


def mean_of(parts: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Ratios of several batches or seeds over the same levels, averaged."""
    return [(some[0][0], sum(ratio for _, ratio in some) / len(some)) for some in zip(*parts, strict=True)]


def figures(ratios: list[tuple[float, float]]) -> dict[str, Any]:
    """Ratios as a result file has them, and the typical one."""
    shown = [(float(f"{sigma:.4g}"), round(ratio, 3)) for sigma, ratio in ratios]
    return {"walk_error": round(typical(ratios), 4), "walk_errors": shown}
