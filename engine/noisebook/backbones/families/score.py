"""Adapters of score models, variance exploding and variance preserving (Song et al. 2021, arXiv 2011.13456)."""

import math
from typing import Any

from torch import Tensor, nn

from noisebook.backbones.families.network import NetworkBackbone, full


class ScoreVE(NetworkBackbone):
    """x0_hat = x + sigma_t^2 score, by Tweedie's formula: s = 1, sigma_t = sigma.

    `net(x [B, C, H, W], sigma_t [B])` -> grad log p(x; sigma_t), as x. `unit_range` says that the model's images are in
    [0, 1] instead of [-1, 1], as those of the published NCSN++ are: x and sigma_t are then (y + 1) / 2 and sigma / 2.
    """

    def __init__(self, net: nn.Module, unit_range: bool = False, **shape: Any):
        super().__init__(net, **shape)
        self.unit_range = unit_range

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any sigma > 0 -> x0_hat, same shape and dtype."""
        if self.unit_range:
            return y + (0.5 * sigma * sigma) * self.call(0.5 * y + 0.5, full(y, 0.5 * sigma))
        return y + (sigma * sigma) * self.call(y, full(y, sigma))


class ScoreVP(NetworkBackbone):
    """x0_hat = (x + sigma_t^2 score) / s = y + sigma^2 s score, with s = exp(-B(t) / 2), sigma_t^2 = 1 - s^2 and
    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 (appendix C of the paper).

    `net(x_t [B, C, H, W], t [B] in (0, 1])` -> grad log p(x_t), as x_t.
    """

    def __init__(self, net: nn.Module, beta_min: float = 0.1, beta_max: float = 20.0, **shape: Any):
        super().__init__(net, **shape)
        self.beta_min, self.beta_max = beta_min, beta_max
        self.sigma_max = math.sqrt(math.expm1(0.5 * (beta_min + beta_max)))  # at t = 1

    def time(self, sigma: float) -> float:
        """t of a level: B(t) = ln(1 + sigma^2) solved in the form that does not cancel at small sigma."""
        b = math.log1p(sigma * sigma)
        return 2 * b / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))

    def round_sigma(self, sigma: float) -> float:
        """sigma, or the highest level, that of t = 1, where sigma is above it."""
        return min(sigma, self.sigma_max)

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at 0 < sigma <= sigma_max -> x0_hat, same shape and dtype."""
        s = 1 / math.hypot(1, sigma)
        return y + (sigma * sigma * s) * self.call(s * y, full(y, self.time(sigma)))
