"""A model whose images are in another range than [-1, 1], such as [0, 1] or [0, 255]."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.grid import Grid
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.errors import BackboneError, printable


def ranged_fingerprint(low: float, high: float, inner: str) -> str:
    """Of a backbone of the fingerprint `inner` whose images are in [low, high]."""
    return fingerprint_of({"range": [low, high], "of": inner}, {})


class Ranged(Wrapper):
    """`inner`, a model of images in [low, high], as one of images in [-1, 1].

    Its images are u0 = a x0 + b, a = (high - low) / 2 and b = (high + low) / 2. So a y + b = u0 + (a sigma) eps: the noise
    level scales with the range, and x0_hat = (D(a y + b, a sigma) - b) / a. At sigma = inf y is eps, which has no range. Of
    a latent model, whose state has no range, only what its autoencoder takes and gives is scaled.

    The fingerprint is made of inner's. Raises BackboneError where low is not below high, or one is not finite.
    """

    def __init__(self, inner: Backbone, low: float, high: float):
        low, high = float(low), float(high)
        if not math.isfinite(high - low) or not low < high:
            raise BackboneError(
                f"images have values from a low to a high one, not from {printable(low)} to {printable(high)}"
            )
        super().__init__(inner, fingerprint=partial(ranged_fingerprint, low, high))
        self.low, self.high = low, high
        self.scale, self.shift = (high - low) / 2, (high + low) / 2

    @property
    def on_pixels(self) -> bool:
        return self.inner.on_pixels

    def _there(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def _back(self, u: Tensor) -> Tensor:
        return (u - self.shift) / self.scale

    def round_sigma(self, sigma: float) -> float:
        """The level nearest to sigma that inner knows, in units of [-1, 1]."""
        if not self.on_pixels:
            return self.inner.round_sigma(sigma)
        level = self.inner.round_sigma(self.scale * sigma)
        return sigma if level == self.scale * sigma else level / self.scale  # a level that is known is unchanged

    def own_grid(self) -> Grid | None:
        """Inner's levels, in units of [-1, 1]."""
        grid = self.inner.own_grid()
        if grid is None or not self.on_pixels:
            return grid
        return replace(grid, levels=tuple(level / self.scale for level in grid.levels))

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, *state_shape] at sigma > 0, or eps itself at sigma = inf -> x0_hat, same shape and dtype."""
        more = () if cond is None else (cond,)
        if not self.on_pixels:
            return self.inner.denoise(y, sigma, *more)
        u = self._there(y) if sigma < math.inf else y
        return self._back(self.inner.denoise(u, self.scale * sigma, *more))

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        """As `denoise`, with one level per image: sigma [B]."""
        if not self.on_pixels:
            return self.inner.denoise_each(y, sigma)
        return self._back(self.inner.denoise_each(self._there(y), self.scale * sigma))

    def encode_condition(self, images: Tensor) -> Tensor:
        return self.inner.encode_condition(self._there(images))

    def encode(self, images: Tensor) -> Tensor:
        return images if self.on_pixels else self.inner.encode(self._there(images))

    def decode(self, x0: Tensor) -> Tensor:
        return x0 if self.on_pixels else self._back(self.inner.decode(x0))
