"""Adapter of discrete-time models (DDPM; Ho et al. 2020): they predict eps, v or x0, and know a grid of noise levels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.families.network import NetworkBackbone, nearest
from noisebook.backbones.grid import Grid
from noisebook.errors import BackboneError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class DDPM(NetworkBackbone):
    """x0_hat of a model of x = s x0 + sigma_t eps, s = sqrt(abar), sigma_t = sqrt(1 - abar).

    `net(x [B, C, H, W], t int64 [B])` -> eps, v = s eps - sigma_t x0 (Salimans and Ho 2022), or x0: [B, C or more, H, W], of
    which the first C channels count. `alphas_cumprod` are abar over t = 0, 1, ..., falling, in (0, 1). The last may be 0
    (zero-terminal SNR; Lin et al. 2024): that is the level sigma = inf, pure noise; an eps-prediction says nothing there,
    so that it is left out. `spacing` and `offset` say how the model's own sampler takes its timesteps, see `Grid`. Raises
    BackboneError on other levels or another prediction.
    """

    def __init__(
        self,
        net: nn.Module,
        alphas_cumprod: Sequence[float],
        prediction: str = "epsilon",
        *,
        spacing: str = "linspace",
        offset: int = 0,
        **shape: Any,
    ):
        super().__init__(net, **shape)
        self.spacing, self.offset = spacing, offset
        if prediction not in PREDICTIONS:
            raise BackboneError(f"prediction type {prediction!r} is none of {', '.join(PREDICTIONS)}")
        abars = list(alphas_cumprod)
        if prediction == "epsilon" and abars and abars[-1] == 0:
            abars.pop()
        if not abars or not abars[0] < 1 or not abars[-1] >= 0 or sorted(set(abars), reverse=True) != abars:
            raise BackboneError("the scheduler's alphas_cumprod do not fall from below 1 towards 0")
        self.prediction = prediction
        self.scales = [math.sqrt(abar) for abar in abars]  # s of timestep t
        self.sigmas_t = [math.sqrt(1 - abar) for abar in abars]
        self.levels = [math.sqrt((1 - abar) / abar) if abar else math.inf for abar in abars]  # sigma of timestep t, rising
        self.pure_noise = self.levels[-1] == math.inf

    def round_sigma(self, sigma: float) -> float:
        """The model's level nearest to sigma in log distance."""
        return self.levels[nearest(self.levels, sigma)]

    def own_grid(self) -> Grid:
        """The levels of all timesteps."""
        return Grid(tuple(self.levels), self.spacing, self.offset)

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at the model's level nearest to sigma -> x0_hat, same shape and dtype (method.md, 1), not clipped.

        That level serves the input's scale, the timestep and the formula alike.
        """
        t = nearest(self.levels, sigma)
        sigma, s, sigma_t = self.levels[t], self.scales[t], self.sigmas_t[t]
        x = s * y if s else y  # at pure noise y is eps itself
        out = self.call(x, torch.full((len(y),), t, dtype=torch.long, device=y.device))
        if self.prediction == "epsilon":
            return y - sigma * out
        if self.prediction == "v_prediction":
            return s * x - sigma_t * out
        return out
