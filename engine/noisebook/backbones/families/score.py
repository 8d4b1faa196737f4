"""Adapters of score models, variance exploding and variance preserving (Song et al. 2021, arXiv 2011.13456)."""

import math
from typing import Any

from torch import Tensor, nn

from noisebook.backbones.families.network import NetworkBackbone, full


class ScoreVE(NetworkBackbone):
    """x0_hat = x + sigma^2 score, by Tweedie's formula: s = 1, sigma = lam.

    `net(x [B, C, H, W], sigma [B])` -> grad log p(x; sigma), as x. `unit_range` says that the model's images are in
    [0, 1] instead of [-1, 1], as those of the published NCSN++ are: x and sigma are then (y + 1) / 2 and lam / 2.
    """

    def __init__(self, net: nn.Module, unit_range: bool = False, **shape: Any):
        super().__init__(net, **shape)
        self.unit_range = unit_range

    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any lam > 0 -> x0_hat, same shape and dtype."""
        if self.unit_range:
            return y + (0.5 * lam * lam) * self.call(0.5 * y + 0.5, full(y, 0.5 * lam))
        return y + (lam * lam) * self.call(y, full(y, lam))


class ScoreVP(NetworkBackbone):
    """x0_hat = (x + sigma^2 score) / s = y + lam^2 s score, with s = exp(-B(t) / 2), sigma^2 = 1 - s^2 and
    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 (appendix C of the paper).

    `net(x_t [B, C, H, W], t [B] in (0, 1])` -> grad log p(x_t), as x_t.
    """

    def __init__(self, net: nn.Module, beta_min: float = 0.1, beta_max: float = 20.0, **shape: Any):
        super().__init__(net, **shape)
        self.beta_min, self.beta_max = beta_min, beta_max
        self.lam_max = math.sqrt(math.expm1(0.5 * (beta_min + beta_max)))  # at t = 1

    def time(self, lam: float) -> float:
        """t of a level: B(t) = ln(1 + lam^2) solved in the form that does not cancel at small lam."""
        b = math.log1p(lam * lam)
        return 2 * b / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))

    def snap(self, lam: float) -> float:
        """lam, or the highest level, that of t = 1, where lam is above it."""
        return min(lam, self.lam_max)

    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at 0 < lam <= lam_max -> x0_hat, same shape and dtype."""
        s = 1 / math.hypot(1, lam)
        return y + (lam * lam * s) * self.call(s * y, full(y, self.time(lam)))
