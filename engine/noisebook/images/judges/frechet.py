"""The Frechet distance between two sets of features, and the patches that features are taken of."""

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features [N, D] and [M, D], in float64 (Dowson and Landau 1982; with the
    features of an Inception network Heusel et al. 2017 call it FID).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2). Biased upwards for small samples: compare at equal sizes only.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def patches(images: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B * h * w, C, side, side]: the squares of a grid that begins top left; what is left at the right
    and at the bottom is left out. None fit: no patches, [0, C, side, side]."""
    channels = images.shape[1]
    if min(images.shape[2:]) < side:
        return images.new_empty(0, channels, side, side)
    grid = images.unfold(2, side, side).unfold(3, side, side)  # [B, C, h, w, side, side]
    return grid.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, side, side)
