"""What a network is trained for. An objective maps (model, x0 [B, C, H, W] in [-1, 1], progress in [0, 1)) to a loss;
the model is a denoiser D(y [B, C, H, W], sigma [B]) -> [B, C, H, W], y = x0 + sigma eps, whatever it will be used as.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from noisebook.backbones.nets.convnet import LEAST, MOST, PriorDenoiser

Objective = Callable[[nn.Module, Tensor, float], Tensor]


def column(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]


def spread_out(count: int, device: torch.device) -> Tensor:
    """[count] standard normal numbers, one from each of `count` ranges of equal probability: their mean over a batch varies
    far less than that of independent ones (Kingma et al. 2021, "Variational diffusion models", appendix I.1)."""
    return torch.special.ndtri((torch.arange(count, device=device) + torch.rand(count, device=device)) / count)


def edm(mean: float = -0.7, spread: float = 1.3) -> Objective:
    """Denoising, ln sigma ~ N(mean, spread), unit weight on the raw network's target (Karras et al. 2022, section 5).

    The target's scale is the model's own `scale(sigma)`, the root mean square of what it has to add to its linear part.
    """

    def loss(model: nn.Module, x0: Tensor, progress: float) -> Tensor:
        assert isinstance(model, PriorDenoiser)
        sigma = (spread_out(len(x0), x0.device) * spread + mean).exp().clamp(LEAST, MOST)
        error = model(x0 + column(sigma) * torch.randn_like(x0), sigma) - x0
        return (model.scale(column(sigma)) ** -2 * error.square()).mean()

    return loss


def flow(pairs: Callable[[int], tuple[Tensor, Tensor]] | None = None) -> Objective:
    """Rectified flow: mean squared error of the velocity v = eps - x0 at x_t = (1 - t) x0 + t eps (Liu et al. 2023).

    In terms of the denoiser that is |x0_hat - x0|^2 / t^2. t is logit-normal (Esser et al. 2024). Noise is drawn, or it
    comes with its image from `pairs(count)` -> (x0, eps): that is reflow.
    """

    def loss(model: nn.Module, x0: Tensor, progress: float) -> Tensor:
        x0, noise = pairs(len(x0)) if pairs else (x0, torch.randn_like(x0))
        sigma = (
            torch.randn(len(x0), device=x0.device).exp().clamp(LEAST, MOST)
        )  # t = sigma / (1 + sigma): logit t = ln sigma
        error = model(x0 + column(sigma) * noise, sigma) - x0
        return (column((1 + sigma) / sigma) ** 2 * error.square()).mean()

    return loss


def consistency(mean: float = -1.1, spread: float = 2.0, base: float = 2.0, stages: int = 8) -> Objective:
    """Easy consistency tuning (Geng et al. 2024) of a trained denoiser: f(y, sigma) is held to f at a lower level r on the
    same noise, and r rises to sigma while training goes on: r / sigma = 1 - n(sigma) / base^a, a = 1 ... stages, so that the
    first stage is nearly denoising. n(sigma) = 1 + 8 sigmoid(-sigma). Pseudo-Huber distance, weight 1 / (sigma - r).
    """

    def loss(model: nn.Module, x0: Tensor, progress: float) -> Tensor:
        sigma = (torch.randn(len(x0), device=x0.device) * spread + mean).exp().clamp(LEAST, MOST)
        stage = 1 + math.floor(progress * stages)
        ratio = (1 - (1 + 8 * torch.sigmoid(-sigma)) / base**stage).clamp_min(0)
        lower, noise = sigma * ratio, torch.randn_like(x0)
        with torch.no_grad():
            y = x0 + column(lower) * noise
            known = lower > LEAST  # below that the end point is y itself, and at r = 0 it is x0
            target = torch.where(column(known), model(y, lower.clamp_min(LEAST)), torch.where(column(lower > 0), y, x0))
        error = model(x0 + column(sigma) * noise, sigma) - target
        c = 0.06 * math.sqrt(x0[0].numel() / 3072)
        distance = (error.square().sum((1, 2, 3)) + c * c).sqrt() - c
        return (distance / (sigma - lower)).mean()

    return loss
