"""How well images can be predicted from noisy ones without a network: what the errors of a backbone are compared with."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noisebook.backbones.nets.gaussian import dct_matrix

BINS_PER_OCTAVE = 2  # of frequency: few, so that also the spectrum of one image is a smooth one


def power(states: Sequence[Tensor]) -> float:
    """The mean square of all values of the states [B, C, H, W]."""
    total = sum(float(x.double().square().sum()) for x in states)
    return total / sum(x.numel() for x in states)


def multiple_error(square: float, sigma: float) -> float:
    """The mean squared error of the best multiple of y as x0_hat, where x0 has that mean square: of a denoiser that knows
    nothing but how much there is."""
    return square * sigma * sigma / (square + sigma * sigma)


def gaussian_errors(states: Sequence[Tensor], levels: Sequence[float]) -> list[float]:
    """The mean squared error, at each level, of the best linear denoiser for Gaussian images with the mean, the covariance
    of channels and the power spectrum of these states [B, C, H, W], which is that of an isotropic Gaussian: a Wiener filter.

    A DCT coefficient of variance S that noise of level sigma is added to is known with the error S sigma^2 / (S + sigma^2).
    """
    count = sum(len(x) for x in states)
    pixels = sum(len(x) * x[0, 0].numel() for x in states)
    mean = torch.stack([x.double().sum((0, 2, 3)) for x in states]).sum(0) / pixels
    centred = [x.double() - mean[:, None, None] for x in states]
    covariance = torch.stack([torch.einsum("bchw,bdhw->cd", x, x) for x in centred]).sum(0) / pixels
    rotation = torch.linalg.eigh(covariance)[1].T  # rows are the decorrelated channels; white noise stays white
    errors = [0.0] * len(levels)
    for x in centred:
        variance, modes = _spectrum(torch.einsum("dc,bchw->bdhw", rotation, x))
        for i, sigma in enumerate(levels):
            known = variance * sigma**2 / (variance + sigma**2)
            errors[i] += float((known * modes).sum() / (modes.sum() * len(known))) * len(x) / count
    return errors


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean squared DCT coefficient of each channel in each ring of frequencies, float64 [C, rings]; how many coefficients
    there are in each ring, float64 [rings]) of x [B, C, H, W] float64."""
    height, width = x.shape[2:]
    rows, columns = dct_matrix(height, x.device).double(), dct_matrix(width, x.device).double()
    square = (rows @ x @ columns.T).square().mean(0).flatten(1)
    i, j = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    radius = ((i[:, None] / height) ** 2 + (j / width) ** 2).sqrt() * max(height, width)  # 0 for the mean, then from 1 on
    ring = torch.where(radius > 0, 1 + (BINS_PER_OCTAVE * radius.clamp_min(1).log2()).floor(), 0).long().flatten()
    rings = 2 + math.ceil(BINS_PER_OCTAVE * math.log2(2 * max(height, width)))
    modes = torch.bincount(ring, minlength=rings).double()
    total = torch.zeros(len(square), rings, dtype=torch.float64, device=x.device).index_add_(1, ring, square)
    return total / modes.clamp_min(1), modes
