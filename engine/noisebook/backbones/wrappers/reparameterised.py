"""One network seen as a model of another family: the inverses of the adapters `DDPM` and `Flow`.

A denoiser of every level is a model of every family: a view has the same weights, and that family's levels, input scaling
and prediction. It is made of a backbone that has `denoise_each(y, sigma [B])`, one level per image, since a network of
another family is given its time as a tensor, which a CUDA graph cannot read back.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.families.network import NetworkBackbone
from noisebook.backbones.grid import Grid
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.errors import BackboneError

DenoiseEach = Callable[[Tensor, Tensor], Tensor]  # (y [B, C, H, W], sigma [B]) -> x0_hat, as y


class AsEpsilon(nn.Module):
    """The eps-prediction that a denoiser implies at timestep t of a grid of levels (sigma of t = 0, 1, ...)."""

    levels: Tensor  # [T] float64

    def __init__(self, denoise_each: DenoiseEach, levels: list[float]):
        super().__init__()
        self.denoise_each = denoise_each
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W] = sqrt(abar) x0 + sqrt(1 - abar) eps, t int64 [B] -> eps_hat, as x."""
        sigma = self.levels[t].to(x.dtype)
        wide = sigma[:, None, None, None]
        y = x * (1 + wide * wide).sqrt()
        return (y - self.denoise_each(y, sigma)) / wide


class AsFlow(nn.Module):
    """The velocity eps - x0 that a denoiser implies at time t in (0, 1)."""

    def __init__(self, denoise_each: DenoiseEach):
        super().__init__()
        self.denoise_each = denoise_each

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W] = (1 - t) x0 + t eps, t [B] -> v, as x."""
        wide = t[:, None, None, None]
        return (x - self.denoise_each(x / (1 - wide), t / (1 - t))) / wide


def linear_alphas_cumprod(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> list[float]:
    """abar of DDPM's own schedule (Ho et al. 2020, section 4): betas that rise linearly."""
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0).tolist()


def view_fingerprint(kind: str, inner: str) -> str:
    """Of a backbone of the fingerprint `inner` that is seen as another family."""
    return fingerprint_of({"view": kind, "of": inner}, {})


class View(Wrapper):
    """`inner` as a model of another family: `family` is that family's adapter of the prediction that `inner` implies.

    A view does not know pure noise, where there is no y. `kind` stands in the fingerprint. It is accelerated inside
    `inner`: levels and scalings stay float32. Raises BackboneError where `inner` has no `denoise_each`, or a condition,
    which `denoise_each` is not given.
    """

    def __init__(self, inner: Backbone, family: NetworkBackbone, kind: str):
        if not inner.has_denoise_each:
            raise BackboneError(f"backbone {inner.name!r} has no denoise_each(y, sigma [B]), which a view needs")
        if inner.condition_grid is not None:
            raise BackboneError(f"{inner.name!r} has no views: its condition would not reach the network")
        super().__init__(inner, pure_noise=False, fingerprint=partial(view_fingerprint, kind))
        self.family = family
        family.description = self.description

    def round_sigma(self, sigma: float) -> float:
        """The family's level nearest to sigma."""
        return self.family.round_sigma(sigma)

    def own_grid(self) -> Grid | None:
        """The family's."""
        return self.family.own_grid()

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """The family's: y [B, C, H, W] at sigma > 0 -> x0_hat, as y. Raises BackboneError where a condition is given."""
        if cond is not None:
            raise BackboneError("a view takes no condition")
        return self.family.denoise(y, sigma)


def ddpm_view(backbone: Backbone) -> View:
    """`backbone` as an eps-prediction on DDPM's linear grid of 1000 levels, through the adapter `DDPM`."""
    abars = linear_alphas_cumprod()
    net = AsEpsilon(backbone.denoise_each, [math.sqrt((1 - abar) / abar) for abar in abars])
    return View(backbone, DDPM(net, abars), "ddpm")


def flow_view(backbone: Backbone) -> View:
    """`backbone` as a velocity of flow matching, through the adapter `Flow`."""
    return View(backbone, Flow(AsFlow(backbone.denoise_each)), "flow")


def unviewed(backbone: Backbone) -> Backbone:
    """What a view is a view of; any other backbone as it is."""
    return backbone.inner if isinstance(backbone, View) else backbone
