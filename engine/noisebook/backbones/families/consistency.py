"""Adapter of consistency models (Song et al. 2023, arXiv 2303.01469)."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from noisebook.backbones.families.network import NetworkBackbone, full, nearest
from noisebook.backbones.grid import Grid


class Consistency(NetworkBackbone):
    """f(y, sigma) = c_skip y + c_out F(c_in y, time_scale ln sigma): the ODE's end point, used where x0_hat stands.

    c_skip = sd^2 / (d^2 + sd^2), c_out = sd d / sqrt(sigma^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2), d = sigma - sigma_min
    (appendix C of the paper), so that f(y, sigma_min) = y. `net(c_in y [B, C, H, W], time [B])` -> F, as y. The published
    models take 250 ln sigma as their time. `levels`, rising, are those that a model of few steps was trained on, if any.
    """

    def __init__(
        self,
        net: nn.Module,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        time_scale: float = 250.0,
        levels: Sequence[float] | None = None,
        **shape: Any,
    ):
        super().__init__(net, **shape)
        self.sigma_data, self.sigma_min, self.time_scale = sigma_data, sigma_min, time_scale
        self.levels = sorted(levels) if levels else None

    def round_sigma(self, sigma: float) -> float:
        """The nearest trained level in log distance; without a list of them sigma itself, from sigma_min on."""
        return self.levels[nearest(self.levels, sigma)] if self.levels else max(sigma, self.sigma_min)

    def own_grid(self) -> Grid | None:
        """The trained levels, if there is a list of them, evenly picked."""
        return Grid(tuple(self.levels)) if self.levels else None

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at sigma, moved to `round_sigma(sigma)` -> the end point, same shape and dtype."""
        sigma = self.round_sigma(sigma)
        distance, total = sigma - self.sigma_min, math.hypot(sigma, self.sigma_data)
        f = self.call(y / total, full(y, self.time_scale * math.log(sigma)))
        c_skip = self.sigma_data**2 / (distance**2 + self.sigma_data**2)
        return c_skip * y + (self.sigma_data * distance / total) * f
