"""Solvers: from the level where the tokens end to an image, along the probability-flow ODE. Nothing is chosen here."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from noisebook.spec.schedule import even_levels
from noisebook.spec.spec import CodecSpec

Denoiser = Callable[[Tensor, float], Tensor]  # (y, sigma) -> x0_hat


def solve_ode(solver: str, denoise: Denoiser, y: Tensor, sigma: float, levels: Sequence[float]) -> Tensor:
    """y [B, C, h, w] at `sigma` (at inf the noise itself) -> the state at the last of the falling `levels`, 0.

    euler  dy/dsigma = (y - x0_hat) / sigma, a call a level
    heun   the same, with the mean of both ends' slopes: two calls a level, but the last
    ab2    dx/dt = x0_hat - eps_hat of the rectified flow x = t x0 + (1 - t) eps, t = 1 / (1 + sigma), by Adams and
           Bashforth's method of order 2, the first step Euler's: a call a level (CoD, arXiv 2511.18706)
    """
    return (
        _adams_bashforth(denoise, y, sigma, levels)
        if solver == "ab2"
        else _euler(solver == "heun", denoise, y, sigma, levels)
    )


def _euler(heun: bool, denoise: Denoiser, y: Tensor, sigma: float, levels: Sequence[float]) -> Tensor:
    for sigma_next in levels:
        x0_hat = denoise(y, sigma)
        if sigma == math.inf:
            y, sigma = x0_hat + sigma_next * y, sigma_next
            continue
        slope = (y - x0_hat) / sigma
        end = y + (sigma_next - sigma) * slope
        if heun and sigma_next > 0:
            slope = 0.5 * (slope + (end - denoise(end, sigma_next)) / sigma_next)
            end = y + (sigma_next - sigma) * slope
        y, sigma = end, sigma_next
    return y


def _adams_bashforth(denoise: Denoiser, y: Tensor, sigma: float, levels: Sequence[float]) -> Tensor:
    t, before, last = 1 / (1 + sigma), None, 0.0
    x = y * t if t else y
    for sigma_next in levels:
        slope = (denoise(x / t if t else x, sigma) - x) / (1 - t)
        size = 1 / (1 + sigma_next) - t
        share = 0.0 if before is None else size / (2 * last)
        x = x + size * (slope if before is None else (1 + share) * slope - share * before)
        before, last, t, sigma = slope, size, 1 / (1 + sigma_next), sigma_next
    return x


class Ending(NamedTuple):
    """How a decode ends: the solver, the level at which it begins, its levels, and how many steps were walked before."""

    solver: str
    sigma: float
    levels: Sequence[float]
    step: int


def ending(spec: CodecSpec, steps: int | None = None) -> Ending:
    """The end of a decode of the first `steps` steps (None: all); of a codec without steps, of `steps` of the solver."""
    schedule, solver = spec.schedule, spec.solver
    if steps is None:
        return Ending(solver, spec.sigma_last, spec.solver_levels, len(schedule))
    if not schedule:
        return Ending("ab2" if solver == "mean" else solver, spec.sigma_last, even_levels(spec.sigma_last, steps), 0)
    last = min(steps, len(schedule))
    levels = (*(step.sigma_next for step in schedule[last:]), *spec.solver_levels)
    return Ending(solver, schedule[last - 1].sigma_next, levels, last)


def nfe_of(spec: CodecSpec, steps: int | None = None) -> int:
    """Network calls of a decode of the first `steps` steps (None: all), those of the solver included."""
    walked, levels = len(spec.schedule), len(spec.solver_levels)
    if steps is not None and not walked:
        return 2 * steps - 1 if spec.solver == "heun" else steps
    end = {"mean": 1, "heun": 2 * levels - 1}.get(spec.solver, levels) if spec.sigma_last > 0 else 0
    return (walked if steps is None else steps) + end
