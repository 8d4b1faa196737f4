"""The levels that a model of discrete time knows, and how its own sampler picks among them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

HIGHEST_LEVEL, LOWEST_LEVEL, PROBES = 1e4, 1e-4, 1 << 13  # where `probed` looks


@dataclass(frozen=True)
class Grid:
    """The levels sigma of timesteps 0, 1, ..., rising; the last may be inf.

    spacing, offset   how its own sampler takes N of T timesteps, as `timestep_spacing` and `steps_offset` of diffusers'
                      DDIM say it: "linspace", evenly from the first to the last; "leading", each (T // N)-th from
                      `offset` on; "trailing", each (T / N)-th down from the last. Whatever a file says: it is looked at
                      where it is used
    """

    levels: tuple[float, ...]
    spacing: str = "linspace"
    offset: int = 0


def probed(round_sigma: Callable[[float], float]) -> tuple[float, ...]:
    """The levels of a discrete-time model, rising, as far as its `round_sigma` tells them; () of a model of continuous time.
    Of levels less than .2 % apart it may miss some, and of those outside of 1e-4 ... 1e4 it finds one on each side at
    most."""
    ratio = math.log(HIGHEST_LEVEL / LOWEST_LEVEL) / (PROBES - 1)
    probes = [LOWEST_LEVEL * math.exp(ratio * i) for i in range(PROBES)]
    found = [round_sigma(sigma) for sigma in probes]
    if sum(a == b for a, b in zip(found, probes, strict=True)) > PROBES // 8:  # some of these have a lowest or a highest
        return ()
    return tuple(sorted({level for level in found if 0 < level < math.inf}))
