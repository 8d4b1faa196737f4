"""One step of the loop, and the names of what comes before the first one."""

import math
from dataclasses import dataclass
from enum import IntEnum

from noisebook.errors import SpecError


class StepIndex(IntEnum):
    """Indices of the tokens that come before those of step 0."""

    RESOLUTION = -3  # at which steps the network runs at a lower resolution
    CONDITION = -2  # the backbone's own tokens of the image
    START = -1  # the codebook start


def require(condition: bool, message: str) -> None:
    """Raises SpecError with that message unless the condition holds."""
    if not condition:
        raise SpecError(message)


@dataclass(frozen=True)
class Step:
    """One step of the loop: from noise-to-signal ratio `sigma` down to `sigma_down` by the network, up to `sigma_next`
    by noise.

    The first step of a schedule may begin at sigma = inf, pure noise; there it goes down to any finite sigma_down.
    `budget` is what each view spends on that noise, 0 where `sigma_next == sigma_down` (nothing is injected). The rule says
    its unit: bins of one token each (`bins`), atoms (`top`, `pursuit`), or bits of Kullback-Leibler divergence (`poisson`).
    """

    sigma: float
    sigma_down: float
    sigma_next: float
    budget: int

    def __post_init__(self) -> None:
        for name in ("sigma", "sigma_down", "sigma_next"):  # 3 and 3.0 are the same level: one canonical form
            object.__setattr__(self, name, float(getattr(self, name)))
        if reason := self._fault():  # a message is made only where it is needed: a file may have 65,536 steps
            raise SpecError(f"{reason}, not {self}")

    def _fault(self) -> str | None:
        """What is wrong with the numbers of a step."""
        sigma, down, up_to = self.sigma, self.sigma_down, self.sigma_next
        if not (math.isfinite(down) and math.isfinite(up_to) and sigma > 0):
            return "step levels must be finite (sigma may be inf) and sigma above 0"
        if not (0 <= down <= up_to <= sigma and down < sigma):
            return "a step needs 0 <= sigma_down <= sigma_next <= sigma and sigma_down < sigma"
        if not (down > 0 or up_to == 0 or sigma in (up_to, math.inf)):
            return "sigma_down = 0 on a falling schedule (p = 0) throws all old noise away: it must be gDDCM's fixed point"
        if (self.budget > 0) != (up_to > down):
            return "a step has tokens exactly when it injects noise (sigma_next > sigma_down)"
        return None

    @property
    def from_pure_noise(self) -> bool:
        """Whether the step begins at sigma = inf, where the state holds the noise eps itself."""
        return self.sigma == math.inf

    @property
    def keep(self) -> float:
        """Share of y - x0_hat that stays: sigma_down / sigma; from sigma = inf, where that is unit noise, sigma_down."""
        return self.sigma_down if self.sigma == math.inf else self.sigma_down / self.sigma

    @property
    def kept(self) -> float:
        """`keep` of the noise that y already has; 0 from pure noise, where the codec has sent none yet."""
        return 0.0 if self.from_pure_noise else self.keep

    @property
    def sigma_up(self) -> float:
        """Standard deviation of the injected noise: sigma_up^2 = sigma_next^2 - sigma_down^2."""
        return math.sqrt((self.sigma_next - self.sigma_down) * (self.sigma_next + self.sigma_down))
