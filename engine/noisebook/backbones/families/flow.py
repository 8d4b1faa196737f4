"""Adapter of flow matching and rectified flow (Lipman et al. 2023, Liu et al. 2023), in both directions of time."""

import math
from typing import Any

from torch import Tensor, nn

from noisebook.backbones.families.network import NetworkBackbone, full


class Flow(NetworkBackbone):
    """x0_hat = x_t - t v of a velocity v = eps - x0 along x_t = (1 - t) x0 + t eps; sigma = t / (1 - t).

    `net(x_t [B, C, H, W], time_scale * t [B])` -> v, as x_t. With `reverse`, time runs from noise at 0 to images at 1
    and the velocity is x0 - eps (Lipman's convention): the net is given time_scale * (1 - t). The level sigma = inf
    is t = 1."""

    def __init__(self, net: nn.Module, time_scale: float = 1.0, reverse: bool = False, **shape: Any):
        super().__init__(net, **shape)
        self.time_scale, self.reverse, self.pure_noise = time_scale, reverse, True

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any sigma > 0, or eps itself at sigma = inf -> x0_hat, same shape and dtype."""
        s = 1 / (1 + sigma)
        t = sigma * s if sigma < math.inf else 1.0
        x = s * y if s else y
        v = self.call(x, full(y, self.time_scale * (s if self.reverse else t)))
        return x + t * v if self.reverse else x - t * v
