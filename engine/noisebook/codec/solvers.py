"""The finish: from the level where the tokens end to an image, along the probability-flow ODE. Nothing is chosen here."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]  # (y, lam) -> x0_hat


def ode(kind: str, denoise: Denoiser, y: Tensor, lam: float, levels: Sequence[float]) -> Tensor:
    """y [B, C, h, w] at `lam` (at inf the noise itself) -> the state at the last of the falling `levels`, 0.

    euler  dy/dlam = (y - x0_hat) / lam, a call a level
    heun   the same, with the mean of both ends' slopes: two calls a level, but the last
    ab2    dx/dt = x0_hat - eps_hat of the rectified flow x = t x0 + (1 - t) eps, t = 1 / (1 + lam), by Adams and Bashforth's
           method of order 2, the first step Euler's: a call a level (CoD, arXiv 2511.18706)
    """
    return _adams_bashforth(denoise, y, lam, levels) if kind == "ab2" else _euler(kind == "heun", denoise, y, lam, levels)


def _euler(heun: bool, denoise: Denoiser, y: Tensor, lam: float, levels: Sequence[float]) -> Tensor:
    for lam_next in levels:
        x0_hat = denoise(y, lam)
        if lam == math.inf:
            y, lam = x0_hat + lam_next * y, lam_next
            continue
        slope = (y - x0_hat) / lam
        end = y + (lam_next - lam) * slope
        if heun and lam_next > 0:
            slope = 0.5 * (slope + (end - denoise(end, lam_next)) / lam_next)
            end = y + (lam_next - lam) * slope
        y, lam = end, lam_next
    return y


def _adams_bashforth(denoise: Denoiser, y: Tensor, lam: float, levels: Sequence[float]) -> Tensor:
    t, before, last = 1 / (1 + lam), None, 0.0
    x = y * t if t else y
    for lam_next in levels:
        slope = (denoise(x / t if t else x, lam) - x) / (1 - t)
        size = 1 / (1 + lam_next) - t
        share = 0.0 if before is None else size / (2 * last)
        x = x + size * (slope if before is None else (1 + share) * slope - share * before)
        before, last, t, lam = slope, size, 1 / (1 + lam_next), lam_next
    return x
