"""One network seen as a model of another family: the inverses of the adapters `DDPM` and `Flow`.

A denoiser of every level is a model of every family: a view has the same weights, and that family's levels, input scaling
and prediction. It is made of a backbone that also has `denoise_each(y, sigma [B])`, one level an image, since a network of
another family is told its time as a tensor, which a CUDA graph cannot read back.
"""

import math

import torch
from torch import Tensor, nn

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.flow import Flow
from noisebook.errors import BackboneError


class AsEpsilon(nn.Module):
    """The eps-prediction that a denoiser implies at timestep t of a grid of levels (sigma of t = 0, 1, ...)."""

    levels: Tensor  # [T] float64

    def __init__(self, denoiser: Backbone, levels: list[float]):
        super().__init__()
        self.denoiser = denoiser
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W] = sqrt(abar) x0 + sqrt(1 - abar) eps, t int64 [B] -> eps_hat, as x."""
        sigma = self.levels[t].to(x.dtype)
        wide = sigma[:, None, None, None]
        y = x * (1 + wide * wide).sqrt()
        return (y - self.denoiser.denoise_each(y, sigma)) / wide  # type: ignore[operator]


class AsFlow(nn.Module):
    """The velocity eps - x0 that a denoiser implies at time t in (0, 1)."""

    def __init__(self, denoiser: Backbone):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W] = (1 - t) x0 + t eps, t [B] -> v, as x."""
        wide = t[:, None, None, None]
        return (x - self.denoiser.denoise_each(x / (1 - wide), t / (1 - t))) / wide  # type: ignore[operator]


def linear_alphas_cumprod(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> list[float]:
    """abar of DDPM's own schedule (Ho et al. 2020, section 4): betas that rise linearly."""
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0).tolist()


class _Passed:
    """A view's network is accelerated inside the backbone that it is a view of: levels and scalings stay float32."""

    net: nn.Module

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        self.net.denoiser.accelerate(dtype, channels_last, compile)  # type: ignore[union-attr,operator]


class _DDPMView(_Passed, DDPM):
    pass


class _FlowView(_Passed, Flow):
    pass


def ddpm_view(backbone: Backbone) -> Backbone:
    """`backbone` as an eps-prediction on DDPM's linear grid of 1000 levels, through the adapter `DDPM`."""
    abars = linear_alphas_cumprod()
    net = AsEpsilon(backbone, [math.sqrt((1 - abar) / abar) for abar in abars])
    return _taken_over(_DDPMView(net, abars), backbone, "ddpm")


def flow_view(backbone: Backbone) -> Backbone:
    """`backbone` as a velocity of flow matching, through the adapter `Flow`; pure noise it does not know."""
    view = _taken_over(_FlowView(AsFlow(backbone)), backbone, "flow")
    view.pure_noise = False
    return view


def unviewed(backbone: Backbone) -> Backbone:
    """What a view is a view of; any other backbone as it is."""
    return backbone.net.denoiser if isinstance(backbone, _Passed) else backbone  # type: ignore[return-value]


def _taken_over(view: Backbone, inner: Backbone, kind: str) -> Backbone:
    if not hasattr(inner, "denoise_each"):
        raise BackboneError(f"backbone {inner.name!r} has no denoise_each(y, sigma [B]), which a view needs")
    view.name, view.channels, view.size, view.multiple = inner.name, inner.channels, inner.size, inner.multiple
    view.capturable = inner.capturable
    view.fingerprint = fingerprint_of({"view": kind, "of": inner.fingerprint}, {})
    return view
