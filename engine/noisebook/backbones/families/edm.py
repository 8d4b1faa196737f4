"""Adapter of EDM's preconditioned networks (Karras et al. 2022, arXiv 2206.00364)."""

import math
from typing import Any

from torch import Tensor, nn

from noisebook.backbones.families.network import NetworkBackbone, full


class EDM(NetworkBackbone):
    """x0_hat = c_skip y + c_out F(c_in y, c_noise), table 1 of the paper; s = 1, sigma_t = sigma.

    `net(c_in y [B, C, H, W], c_noise [B])` -> F, as y, of about unit variance; `sigma_data` is the standard deviation of
    the images. c_noise = ln(sigma) / 4. `negative` is for a net that predicts -F, as diffusers' v-predictions do: with
    sigma_data = 1 that is v = (eps - sigma x0) / sqrt(1 + sigma^2), in continuous time.
    """

    def __init__(self, net: nn.Module, sigma_data: float = 0.5, negative: bool = False, **shape: Any):
        super().__init__(net, **shape)
        self.sigma_data, self.sign = sigma_data, -1.0 if negative else 1.0

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any sigma > 0 -> x0_hat, same shape and dtype."""
        return self._precondition(y, sigma, full(y, 0.25 * math.log(sigma)))

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        """As `denoise`, with one level per image: sigma [B], of y's dtype."""
        return self._precondition(y, sigma[:, None, None, None], 0.25 * sigma.log())

    def _precondition(self, y: Tensor, sigma: Any, c_noise: Tensor) -> Tensor:
        variance = sigma * sigma + self.sigma_data**2
        f = self.call(y * variance**-0.5, c_noise)
        return y * (self.sigma_data**2 / variance) + f * (sigma * (self.sign * self.sigma_data) * variance**-0.5)
