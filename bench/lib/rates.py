"""What a rate-distortion comparison is made of: MS-SSIM, Bjontegaard's delta rate with its interval, and reading off curves.

A curve is a list of pairs (rate, PSNR in dB). The rate may be in bits or in bits per pixel, the same in all curves compared.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.nn import functional as F

Curve = Sequence[tuple[float, float]]
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from fine to coarse (Wang et al. 2003, section 3.2)
LEAST_SIDE = 11 * 2 ** (len(WEIGHTS) - 1)  # an 11 x 11 window fits into the coarsest scale


# ---- one figure an image ------------------------------------------------------------------------------------------------
def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """uint8 [B, C, H, W] twice -> multi-scale structural similarity, float64 [B]; NaN for a side below `LEAST_SIDE`.

    Wang, Simoncelli, Bovik 2003: contrast and structure at five scales, luminance at the coarsest; 11 x 11 Gaussian windows
    of sigma 1.5 that lie inside the picture; means of 2 x 2 pixels from scale to scale (an odd last row or column is left
    out). Of each channel by itself, then the mean over channels; a negative mean counts as 0. Values in [0, 255].
    """
    x, y = a.double(), b.double()
    if min(x.shape[2:]) < LEAST_SIDE:
        return torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device)
    product = torch.ones(x.shape[:2], dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        mx, my, xx, yy, xy = _windows(torch.stack([x, y, x * x, y * y, x * y]))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        s = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
        if scale == len(WEIGHTS) - 1:
            s = s * (2 * mx * my + c1) / (mx * mx + my * my + c1)
        product = product * s.mean((2, 3)).clamp(min=0) ** weight
    return product.mean(1)


def _windows(maps: Tensor) -> Tensor:
    """float64 [..., H, W] -> Gaussian weighted means of all 11 x 11 windows, [..., H - 10, W - 10]."""
    at = torch.arange(-5, 6, dtype=torch.float64, device=maps.device)
    weights = torch.exp(-at.square() / (2 * 1.5**2))
    weights = weights / weights.sum()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.conv2d(F.conv2d(flat, weights.view(1, 1, 11, 1)), weights.view(1, 1, 1, 11))
    return out.view(*maps.shape[:-2], *out.shape[-2:])


# ---- curves -------------------------------------------------------------------------------------------------------------
def pairs(rows: Sequence[Mapping], rate: str = "bpp", quality: str = "psnr") -> list[tuple[float, float]]:
    """The curve of rows such as `classical.curve` makes, by the names of two of their figures."""
    return [(row[rate], row[quality]) for row in rows]


def front(points: Curve) -> list[int]:
    """Which points no other one beats (less rate and no less PSNR, or the same rate and more), by rising rate.

    Along them rate and PSNR both rise strictly, as an interpolation needs. Points that are not finite are left out.
    """
    kept, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if math.isfinite(points[i][0]) and best < points[i][1] < math.inf:
            kept.append(i)
            best = points[i][1]
    return kept


def _arrays(points: Curve) -> tuple[np.ndarray, np.ndarray]:
    """(ln rate, PSNR) of the front, float64 [n] each."""
    kept = np.array([points[i] for i in front(points)], np.float64).reshape(-1, 2)
    return np.log(kept[:, 0]), kept[:, 1]


def overlap(anchor: Curve, points: Curve) -> tuple[float, float] | None:
    """(lowest, highest) PSNR that both curves reach; None where they share no interval."""
    ends = [_arrays(curve)[1] for curve in (anchor, points)]
    if min(map(len, ends)) < 2:
        return None
    low, high = max(e[0] for e in ends), min(e[-1] for e in ends)
    return (float(low), float(high)) if low < high else None


def bd_rate(anchor: Curve, points: Curve) -> float:
    """Bits of `points` beyond those of `anchor` at equal PSNR, in percent; below 0 where `points` needs fewer.

    Bjontegaard 2001: the mean difference of ln rate over the PSNR that both curves reach, each curve interpolated by
    piecewise cubic Hermite polynomials (PCHIP) through its front. NaN where the curves share no interval of PSNR or have
    fewer than two points. Between curves that cross, or that share little, one figure says little: see `overlap`.
    """
    common = overlap(anchor, points)
    if common is None:
        return math.nan
    low, high = common
    area = [float(PchipInterpolator(psnr, rate).integrate(low, high)) for rate, psnr in map(_arrays, (anchor, points))]
    return 100 * math.expm1((area[1] - area[0]) / (high - low))


def bd_rate_interval(
    images: Sequence[tuple[Curve, Curve]], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of `bd_rate` over images, each a pair (anchor, points): the 95 % percentile bootstrap interval.

    The images are drawn again with replacement, `resamples` times. All three are NaN where one image has none: whoever
    leaves such an image out says so. With a dozen images or fewer the interval is somewhat too narrow.
    """
    rates = np.array([bd_rate(anchor, points) for anchor, points in images])
    drawn = np.random.default_rng(seed).integers(len(rates), size=(resamples, len(rates)))
    low, high = np.quantile(rates[drawn].mean(1), (0.025, 0.975))
    return float(rates.mean()), float(low), float(high)


def at_rate(points: Curve, rate: float) -> float | None:
    """PSNR at a rate, linear in ln rate between the two points of the front beside it; None outside the curve."""
    rates, psnr = _arrays(points)
    return _between(math.log(rate), rates, psnr)


def at_psnr(points: Curve, psnr: float) -> float | None:
    """The rate at a PSNR, the inverse of `at_rate`; None outside the curve."""
    rates, quality = _arrays(points)
    found = _between(psnr, quality, rates)
    return None if found is None else math.exp(found)


def _between(x: float, xs: np.ndarray, ys: np.ndarray) -> float | None:
    inside = len(xs) > 0 and xs[0] <= x <= xs[-1]
    return float(np.interp(x, xs, ys)) if inside else None
