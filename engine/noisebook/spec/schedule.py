"""Where the tokens go: noise levels, how far each step goes down before noise is injected, and tokens per step.

A schedule is a list of `Step(sigma, sigma_down, sigma_next, budget)` in float64. `p` says how much of the de-noised
log-distance is kept: ln sigma_next = (1 - p) ln sigma + p ln sigma_down. p = 1 is the probability-flow ODE (no
token), p = 1/2 the DDPM posterior (DDCM), and p = 0 gDDCM's fixed point, which stays at one level and needs rho =
sigma_down / sigma instead."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from noisebook.errors import SpecError, printable
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.backbones.grid import Grid


def log_uniform(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """steps + 1 levels from sigma_max to sigma_min, evenly spaced in ln sigma."""
    _check_range(sigma_max, sigma_min, steps)
    ratio = math.log(sigma_min / sigma_max)
    return [sigma_max, *(sigma_max * math.exp(ratio * i / steps) for i in range(1, steps)), sigma_min]


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> list[float]:
    """steps + 1 levels from sigma_max to sigma_min, evenly spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    _check_range(sigma_max, sigma_min, steps)
    a, b = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [sigma_max, *((a + (b - a) * i / steps) ** rho for i in range(1, steps)), sigma_min]


def ddpm(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """steps + 1 levels of DDPM's linear-beta grid (T = 1000, betas 1e-4 ... 0.02), respaced evenly in time.

    The part of the grid between the first level at or above sigma_min and the last at or below sigma_max is used.
    """
    _check_range(sigma_max, sigma_min, steps)
    levels, abar = [], 1.0
    for t in range(1000):
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        levels.append(math.sqrt((1 - abar) / abar))
    inside = [sigma for sigma in reversed(levels) if sigma_min * (1 - 1e-9) <= sigma <= sigma_max * (1 + 1e-9)]
    if len(inside) < steps + 1:
        raise SpecError(f"DDPM's grid has {len(inside)} levels between {sigma_min} and {sigma_max}, not {steps + 1}")
    return [inside[round(i * (len(inside) - 1) / steps)] for i in range(steps + 1)]


def flow(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """steps + 1 levels evenly spaced in a rectified flow's time t = sigma / (1 + sigma); sigma_max may be inf (t = 1)."""
    _check_range(min(sigma_max, sys.float_info.max), sigma_min, steps)
    a, b = (1.0 if sigma == math.inf else sigma / (1 + sigma) for sigma in (sigma_max, sigma_min))
    times = [a + (b - a) * i / steps for i in range(1, steps)]
    return [sigma_max, *(t / (1 - t) for t in times), sigma_min]


# Turbo-DDCM's time steps of 1000, which its code takes from DiffC: dense where noise is low
# fmt: off
TURBO_TIMES = (
    999, 972, 949, 929, 897, 869, 834, 805, 780, 751, 726, 704, 688, 670, 648, 627, 608, 591, 578, 561, 546, 530, 520, 510,
    498, 491, 480, 465, 455, 447, 438, 429, 419, 410, 402, 390, 380, 371, 361, 353, 345, 336, 326, 319, 313, 305, 296, 289,
    282, 276, 269, 261, 254, 247, 242, 237, 231, 224, 219, 213, 209, 204, 200, 194, 189, 185, 181, 175, 170, 167, 163, 160,
    156, 153, 149, 146, 143, 139, 135, 132, 129, 125, 121, 118, 116, 113, 110, 107, 104, 101, 99, 96, 94, 92, 90, 87, 85, 82,
    *range(80, 48, -2), *range(48, 0, -1),
)
# fmt: on


def scaled_linear() -> list[float]:
    """The 1000 levels of Stable Diffusion's noise, rising: betas whose square roots are even from .00085^.5 to .012^.5."""
    levels, abar = [], 1.0
    for t in range(1000):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999
        abar *= 1 - root * root
        levels.append(math.sqrt((1 - abar) / abar))
    return levels


def turbo(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """steps + 1 levels of Turbo-DDCM's grid on Stable Diffusion's noise, evenly picked from those between sigma_min and
    sigma_max; all of it lies between 14.7 and 0.04."""
    _check_range(sigma_max, sigma_min, steps)
    levels = scaled_linear()
    return _picked("Turbo-DDCM", [levels[t] for t in TURBO_TIMES], sigma_max, sigma_min, steps)


def diffc(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """steps + 1 levels of DiffC's time steps of 1000 on a rectified flow, evenly picked from those between sigma_min and
    sigma_max: as DiffC walks on CoD (arXiv 2511.18706), sigma_t = (t - 1) / 1000 and sigma = sigma_t / (1 - sigma_t), from
    999 down.

    The network is given time 1 - sigma_t, and not 1 - t / 1000 as in the published code."""
    _check_range(sigma_max, sigma_min, steps)
    levels = [(t - 1) / (1001 - t) for t in (1000, *TURBO_TIMES[1:])]
    return _picked("DiffC", levels, sigma_max, sigma_min, steps)


def own(grid: "Grid", sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """steps + 1 levels of a discrete-time model's own grid: of those between sigma_min and sigma_max, which may be inf, as
    many as its own sampler takes in that many calls, at the timesteps at which it takes them (`Grid`). Of the whole grid
    these are the sampler's own timesteps. Raises SpecError for too few levels, and for timesteps that are taken in a way
    that is not known."""
    inside = _inside(grid.levels, sigma_max, sigma_min)
    here, count = len(inside), steps + 1
    if steps < 1 or here < count:
        raise SpecError(
            f"the model's own grid has {here} levels between {sigma_min} and {sigma_max}, not {count}: take fewer steps, or "
            "a sigma_max and a sigma_min that are farther apart"
        )
    if type(grid.offset) is not int or grid.offset < 0:
        raise SpecError(
            f"the model's steps_offset is {printable(grid.offset, 40)}, no number of timesteps: take spacing {NAMES}"
        )
    if grid.spacing == "linspace":
        times = [round(i * (here - 1) / steps) for i in range(count)]
    elif grid.spacing == "leading":
        stride = here // count
        shift = min(grid.offset, here - 1 - steps * stride)
        times = [i * stride + shift for i in range(count)]
    elif grid.spacing == "trailing":
        times = [round(here - i * here / count) - 1 for i in range(steps, -1, -1)]
    else:
        raise SpecError(f"the model's timestep_spacing {printable(grid.spacing, 40)} is not known: take spacing {NAMES}")
    return [inside[t] for t in reversed(times)]


def _inside(levels: Sequence[float], sigma_max: float, sigma_min: float) -> list[float]:
    return [sigma for sigma in levels if sigma_min * (1 - 1e-9) <= sigma <= sigma_max * (1 + 1e-9)]


def _picked(whose: str, levels: list[float], sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    inside = _inside(levels, sigma_max, sigma_min)
    if len(inside) < steps + 1:
        raise SpecError(f"{whose}'s grid has {len(inside)} levels between {sigma_min} and {sigma_max}, not {steps + 1}")
    return [inside[round(i * (len(inside) - 1) / steps)] for i in range(steps + 1)]


def turbo_free_steps(bits: int, steps: int, height: int, width: int) -> int:
    """How many of Turbo-DDCM's `steps` steps, its last ones, carry no bits: `bits` is what all would cost, the image has
    height x width pixels. None from .15 bits per pixel on; in all of the grid's cases one step keeps its bits."""
    nodes = 70 if height * width <= 768**2 else 20
    ratio = math.log(0.15 / 0.01) / (nodes - 1)
    rate = bits / (height * width)
    return max(0, min(steps - 1, nodes - sum(0.01 * math.exp(ratio * i) < rate for i in range(nodes)) - 1))


SPACINGS: dict[str, Callable[[float, float, int], list[float]]] = {
    "log": log_uniform,
    "karras": karras,
    "ddpm": ddpm,
    "flow": flow,
    "turbo": turbo,
    "diffc": diffc,
}
NAMES = f"{', '.join(list(SPACINGS)[:-1])} or {list(SPACINGS)[-1]}"  # those that any model can take
OWN = "own"  # the one that only a discrete-time model can


def _check_range(sigma_max: float, sigma_min: float, steps: int) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise SpecError(f"levels need 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
    if steps < 1:
        raise SpecError(f"a schedule needs at least 1 step, not {steps}")


def falling(levels: Sequence[float], p: float, budget: int | Sequence[int]) -> tuple[Step, ...]:
    """Steps through strictly falling `levels` with the same p in (0, 1]; a last level of 0 carries no token.

    `budget` is one number for all steps or one a step. From a first level of inf any p < 1 goes down to 0: p is a share of
    a log-distance that is infinite there. Raises SpecError for p = 0, whose limit on a falling schedule is
    full re-noising and not gDDCM's fixed point; use `fixed_level` for that.
    """
    if not 0 < p <= 1:
        raise SpecError(f"p must be in (0, 1] on a falling schedule, not {p}; p = 0 stays at one level and needs rho")
    counts = [budget] * (len(levels) - 1) if isinstance(budget, int) else list(budget)
    if len(counts) != len(levels) - 1:
        raise SpecError(f"{len(levels) - 1} steps need as many token counts, not {len(counts)}")
    steps = []
    for sigma, sigma_next, count in zip(levels, levels[1:], counts, strict=False):
        if sigma_next == 0 or p == 1:
            steps.append(Step(sigma, sigma_next, sigma_next, 0))
        else:
            down = 0.0 if sigma == math.inf else sigma * (sigma_next / sigma) ** (1 / p)
            steps.append(Step(sigma, min(down, sigma_next), sigma_next, count))
    return tuple(steps)


def fixed_level(sigma: float, steps: int, budget: int | Sequence[int], rho: float | None = None) -> tuple[Step, ...]:
    """gDDCM's fixed point, p = 0: `steps` steps that stay at `sigma`, each keeping the share rho of the old noise.

    rho defaults to 1 - 2 / N for N steps (best near 1 - 1.3/N ... 1 - 2.5/N).
    """
    rho = max(0.0, 1 - 2 / steps) if rho is None else rho
    if not 0 <= rho < 1:
        raise SpecError(f"rho must be in [0, 1), not {rho}")
    counts = [budget] * steps if isinstance(budget, int) else list(budget)
    return tuple(Step(sigma, sigma * rho, sigma, count) for count in counts)


def geometric(first: float, last: float, steps: int) -> list[int]:
    """Whole token counts that grow by a constant factor from `first` to `last`: low levels can use more bits."""
    ratio = math.log(last / first)
    return [max(1, round(first * math.exp(ratio * i / max(1, steps - 1)))) for i in range(steps)]


def solver_levels(sigma: float, steps: int) -> tuple[float, ...]:
    """Levels of the closing ODE pass after the last level `sigma`: Karras spacing down to sigma / 50, then 0."""
    if steps < 1:
        raise SpecError(f"the ODE solver needs at least 1 step, not {steps}")
    return (*karras(sigma, sigma / 50, steps - 1)[1:], 0.0) if steps > 1 else (0.0,)


def known_levels(sigma: float, levels: Sequence[float], round_sigma: Callable[[float], float]) -> tuple[float, ...]:
    """The levels that a model knows instead of these, without those that do not fall, from `sigma` to 0."""
    found = [round_sigma(level) if level > 0 else 0.0 for level in levels]
    return tuple(b for a, b in zip([sigma, *found], found, strict=False) if b < a)


def even_levels(sigma: float, steps: int) -> tuple[float, ...]:
    """`steps` levels below `sigma` (may be inf), the last 0, evenly spaced in the time of a rectified flow."""
    if steps < 1:
        raise SpecError(f"the ODE solver needs at least 1 step, not {steps}")
    t = 1 / (1 + sigma)
    times = (t + (1 - t) * i / steps for i in range(1, steps))
    return (*((1 - t) / t for t in times), 0.0)
