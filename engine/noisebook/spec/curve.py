"""Calibration: how well a backbone predicts at every noise level, and from that where tokens are best spent.

A step that spends its tokens on the residual r learns as much about it as a measurement with signal-to-noise ratio m /
mse(sigma) tells, m = tokens times the squared score of the best atom, over D (method.md, section 3). So 1/sigma^2 grows
by m / mse(sigma), and one measured curve mse(sigma) says how far any number of tokens leads. A shortest path over levels
finds the schedule of N calls that costs fewest tokens; each step gets a power of two of them, and the levels follow from
what the steps really got.

All of this is sums, products, quotients and square roots of float64 in a fixed order, so that a decoder on any machine finds
the same schedule, bit for bit, from the curve and two numbers in a file (docs/format.md).
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisebook.errors import SpecError, printable
from noisebook.format.derived import UNSCALED
from noisebook.runtime import strict_json
from noisebook.spec.spec import CodecSpec, identity_fault
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.backbones import Backbone

FORMAT, MAX_LEVELS = 1, 1 << 16
KEYS = {"sigma": "lam"}  # what a curve's file calls an attribute, where the words differ
LEAST_SNR, RATIO, POINTS = 2.0**-12, 1.0905077326652577, 225  # the path's levels 1/sigma^2, eight an octave
# what a file may scale a curve's errors by, about 10^((k - 8) / 15): numbers that every machine reads alike
SCALES = (0.293, 0.341, 0.398, 0.464, 0.541, 0.631, 0.736, 0.858, 1.0, 1.17, 1.36, 1.58, 1.85, 2.15, 2.51, 2.93)
# E[max |z|]^2 of 2^(b - 1) standard normal numbers, for tokens of b = 1 ... 33 bits
# fmt: off
GAIN = (0.6366, 1.2732, 2.1454, 3.1804, 4.3148, 5.5088, 6.7398, 7.9951, 9.2673, 10.552, 11.8465, 13.1487, 14.4574, 15.7717,
        17.0907, 18.4138, 19.7406, 21.0707, 22.4036, 23.7392, 25.0772, 26.4174, 27.7596, 29.1036, 30.4492, 31.7965, 33.1451,
        34.4951, 35.8464, 37.1988, 38.5523, 39.9068, 41.2623)
# fmt: on


@dataclass(frozen=True)
class Curve:
    """What was measured of a backbone: the mean squared error a dimension, in [-1, 1] units, of x0_hat at `sigma`.

    power     mean square, a dimension, of what the first tokens find: x0, or x0 - x0_hat of pure noise under a condition
    multiple, least, channels   of a pixel model: heights and widths are padded to a multiple, and to `least` at least;
              channels 0: a latent one, whose dimensions only the backbone knows
    number    in files, of a curve that comes with the package; 0: none
    condition   of what its predictions were conditioned on, as in `CodecSpec`; (): nothing
    levels    those that a discrete-time model knows, falling; (): it knows any
    """

    backbone: str
    fingerprint: str
    sigma: tuple[float, ...]  # falling
    mse: tuple[float, ...]
    power: float
    multiple: int = 1
    least: int = 1
    channels: int = 0
    number: int = 0
    about: str = ""
    condition: tuple[int, ...] = ()
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        whole = len(self.sigma) == len(self.mse) >= 2 and _fall(self.sigma) and _fall(self.levels)
        if not (whole and all(0 < m < math.inf for m in (*self.mse, self.power))):
            raise SpecError("a curve needs falling levels above 0, and as many errors above 0")

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.sigma[::-1]), np.array(self.mse[::-1])

    def at(self, sigma: float) -> float:
        """The error at any level: linear between those measured, constant above them, like sigma^2 below."""
        levels, errors = self._table
        if sigma >= levels[-1]:
            return float(errors[-1])
        if sigma <= levels[0]:
            return float(errors[0]) * (sigma / float(levels[0])) * (sigma / float(levels[0]))
        i = int(np.searchsorted(levels, sigma))
        a, b = float(levels[i - 1]), float(levels[i])
        t = (sigma - a) / (b - a)
        return float(errors[i - 1]) * (1 - t) + float(errors[i]) * t

    def dims(self, height: int, width: int) -> int:
        """Dimensions of the state of an image of that size, for a pixel model."""
        padded = (-(-max(n, self.least) // self.multiple) * self.multiple for n in (height, width))
        return self.channels * math.prod(padded)

    def known(self, sigma: float) -> float:
        """The level nearest to sigma, by its logarithm, that the model knows."""
        rising = self._rising
        if not rising or sigma == math.inf:
            return sigma
        i = bisect_left(rising, sigma)
        low, high = rising[max(i - 1, 0)], rising[min(i, len(rising) - 1)]
        return low if sigma * sigma <= low * high else high

    @cached_property
    def _rising(self) -> tuple[float, ...]:
        return self.levels[::-1]

    def scaled(self, scaling: int) -> "Curve":
        """The curve with SCALES[scaling] times its errors, of pictures easier or harder than those it was measured on;
        itself where that is 1. `power`, what the first tokens describe, stays. Raises SpecError for another scaling."""
        if not 0 <= scaling < len(SCALES):
            raise SpecError(f"a scaling of a curve is from 0 to {len(SCALES) - 1}, not {scaling}")
        return self if scaling == UNSCALED else replace(self, mse=tuple(m * SCALES[scaling] for m in self.mse))

    def to_json(self) -> str:
        """The text of a curve's file."""
        value = {KEYS.get(k, k): v for k, v in asdict(self).items() if k != "levels" or v}
        return json.dumps({"noisebook_curve": FORMAT, **value}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Curve":
        """The inverse of `to_json`. Raises SpecError on anything else, in one line of bounded length."""
        try:
            value: dict[str, Any] = strict_json.loads(text)
            if value.pop("noisebook_curve") != FORMAT:
                raise SpecError("the curve is of another version; update noisebook")
            for key, name in (("lam", "sigma"), ("mse", "mse")):
                value[name] = tuple(strict_json.number(v) for v in value.pop(key))
            value["levels"] = tuple(strict_json.number(v) for v in value.get("levels", ()))
            value |= {"power": strict_json.number(value["power"]), "condition": tuple(value.get("condition", ()))}
            curve = cls(**value)
            sizes = (curve.multiple, curve.least, curve.channels, curve.number, *curve.condition)
            fits = (
                all(strict_json.whole(v, 0, 1 << 16) for v in sizes)
                and curve.multiple > 0
                and len(curve.condition) in (0, 3)
            )
            texts = all(isinstance(v, str) for v in (curve.backbone, curve.fingerprint, curve.about))
            if not (fits and texts and max(len(curve.sigma), len(curve.levels)) <= MAX_LEVELS):
                raise SpecError("a curve has other numbers or words than `noisebook calibrate` writes")
            if reason := identity_fault(curve.backbone, curve.fingerprint):
                raise SpecError(reason)
            return curve
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            words = str(error) if isinstance(error, SpecError) else f"not a curve that `noisebook calibrate` wrote: {error}"
            raise SpecError(printable(words, 300)) from error


def _fall(levels: Sequence[float]) -> bool:
    """Whether levels fall, from a finite one to one above 0."""
    pairs = zip(levels, levels[1:], strict=False)
    return not levels or (levels[0] < math.inf and levels[-1] > 0 and all(a > b for a, b in pairs))


# ---- where tokens are best spent ----------------------------------------------------------------------------------------
def _needed(y: "np.ndarray | np.float64") -> Any:
    """ln(1 + y) by a quotient (within 1 % up to y = 3): what tokens must tell so that 1/sigma^2 grows by y / mse."""
    return y * (6 + y) / (6 + 4 * y)


def _reached(x: float) -> float:
    """exp(x) - 1 by a quotient, its inverse for small x."""
    x = min(x, 3.0)
    return 12 * x / (12 - 6 * x + x * x)


def path(curve: Curve, dims: int, tokens: int, steps: int, vocab_size: int) -> list[float]:
    """Tokens (real numbers) that the start and each of `steps` steps should spend, so that `tokens` of them reach the
    lowest level: a shortest path over levels 1/sigma^2, in which no jump costs less than a token."""
    one = GAIN[vocab_size.bit_length() - 2] / dims
    snr = [LEAST_SNR]
    while len(snr) < POINTS:
        snr.append(snr[-1] * RATIO)
    levels = np.array(snr)
    errors = np.array([curve.at(1 / math.sqrt(s)) for s in snr])
    jump = np.where(levels[None] > levels[:, None], _needed((levels[None] - levels[:, None]) * errors[:, None]), np.inf)
    jump = np.maximum(jump / one, 1.0)  # tokens from level i to level j
    cost = np.maximum(_needed(levels * curve.power) / one, 1.0)  # of the start
    came: list[np.ndarray] = []
    for _ in range(steps):
        total = cost[:, None] + jump
        came.append(total.argmin(0))
        cost = total.min(0)
    end = int(np.searchsorted(cost, tokens, "right")) - 1 if np.isfinite(cost).any() else 0
    within = np.flatnonzero(cost <= tokens)
    end = int(within[-1]) if len(within) else int(cost.argmin())
    spent = []
    for back in reversed(came):
        begin = int(back[end])
        spent.append(float(jump[begin, end]))
        end = begin
    spent.append(float(max(_needed(np.float64(levels[end] * curve.power)) / one, 1.0)))
    return spent[::-1]


def whole_budgets(wanted: Sequence[float], tokens: int, limit: int) -> list[int]:
    """Powers of two up to `limit` in the proportions of `wanted`, whose sum is near `tokens`: the last first, each
    nearest to its share of what is left, so that the smallest ones, which come last here, make up for the rest."""
    out, left = [], tokens
    for i in range(len(wanted) - 1, -1, -1):
        before = 0.0
        for w in wanted[: i + 1]:
            before += w
        share = left * (wanted[i] / before)
        n = 1
        while 2 * n <= limit and 3 * n < 2 * share and 2 * n <= left - i:
            n *= 2
        out.append(n)
        left -= n
    return out[::-1]


def levels_of(curve: Curve, dims: int, budgets: Sequence[int], vocab_size: int) -> list[float]:
    """The levels that a start of budgets[0] tokens and steps of budgets[1:] lead through: len(budgets) of them, falling.
    Raises SpecError where they fall below what a number can hold."""
    one = GAIN[vocab_size.bit_length() - 2] / dims
    snr = _reached(budgets[0] * one) / curve.power
    levels = [1 / math.sqrt(snr)]
    for n in budgets[1:]:
        error = curve.at(levels[-1])
        snr += _reached(n * one) / error if error > 0 else math.inf
        if snr == math.inf:
            raise SpecError(f"{sum(budgets)} tokens in {len(budgets) - 1} steps are too many for a picture of {dims} values")
        levels.append(1 / math.sqrt(snr))
    return levels


def schedule_for(curve: Curve, dims: int, tokens: int, steps: int, vocab_size: int) -> tuple[int, tuple[Step, ...]]:
    """(tokens of the start, the steps) of the schedule that spends about `tokens` tokens in at most `steps` steps of the
    DDPM posterior, p = 1/2. Raises SpecError for fewer than two tokens."""
    if tokens < 2 or steps < 1:
        raise SpecError(
            f"{tokens} tokens in {steps} steps are too few: a schedule needs a token for the start and one a step"
        )
    steps = min(steps, tokens - 1)
    limit = 1 << max(0, (dims // 16).bit_length() - 1)
    budgets = whole_budgets(path(curve, dims, tokens, steps, vocab_size), tokens, limit)
    levels = levels_of(curve, dims, budgets, vocab_size)
    pairs = zip(levels, levels[1:], budgets[1:], strict=False)
    return budgets[0], tuple(Step(a, b / a * b, b, n) for a, b, n in pairs)


def spec_for(curve: Curve, dims: int, tokens: int, steps: int, vocab_size: int = 65536, seed: int = 0) -> CodecSpec:
    """The codec of a curve for images of `dims` dimensions: the default rule and codebook, solver `mean`, and levels that
    the model knows.

    Under a condition its first tokens are no start, but those of a step more, from pure noise: what the condition says is
    known by then."""
    if curve.levels:  # with a step for each of the path's levels, most of the model's would become one
        steps = min(steps, POINTS // 2)
    start, schedule = schedule_for(curve, dims, tokens, steps, vocab_size)
    if curve.condition:
        start, schedule = 0, (Step(math.inf, 0.0, schedule[0].sigma, start), *schedule)
    spec = CodecSpec(
        curve.backbone,
        curve.fingerprint,
        schedule,
        vocab_size=vocab_size,
        seed=seed,
        start_budget=start,
        start_vocab_size=vocab_size,
        condition=curve.condition,
    )
    return _on_levels(spec, curve.known, dims)


def with_known_levels(spec: CodecSpec, backbone: "Backbone", dims: int = 0) -> CodecSpec:
    """The same with levels that `backbone` knows; itself where it knows them. Steps whose levels become one are one step,
    which spends what they did, in images of `dims` dimensions; 0: at most what one step of `spec` spends. Raises SpecError
    for a model of one level."""
    return _on_levels(spec, backbone.round_sigma, dims)


def _on_levels(spec: CodecSpec, known: Callable[[float], float], dims: int) -> CodecSpec:
    """`with_known_levels`, for a function that gives the known level nearest to any."""
    levels = [s.sigma for s in spec.schedule] + [spec.sigma_last]
    rounded = [known(sigma) for sigma in levels]
    if rounded == levels:
        return spec
    budgets = [spec.start_budget, *(s.budget for s in spec.schedule)]
    kept, wanted, before = [rounded[0]], [budgets[0]], 0  # budgets[i] lead to levels[i]
    for level, budget in zip(rounded[1:], budgets[1:], strict=True):
        if level < kept[-1]:
            kept, wanted, before = [*kept, level], [*wanted, budget + before], 0
        elif len(kept) == 1 and not budgets[0]:  # the first level is not reached by tokens: the next step has these
            before += budget
        else:
            wanted[-1] += budget
    if len(kept) == 1:
        kept, wanted = _two(kept[0], known, spec), [budgets[0], sum(budgets[1:])]
    if len(kept) < len(levels) and spec.rule_type.power_of_two_budget and not spec.scale_pixels:
        limit = 1 << max(0, (dims // 16).bit_length() - 1) if dims else max(budgets)
        first = 0 if budgets[0] else 1  # a start without tokens stays one
        wanted = wanted[:first] + whole_budgets(wanted[first:], sum(wanted), limit)
    pairs = zip(kept, kept[1:], wanted[1:], strict=False)
    return replace(spec, start_budget=wanted[0], schedule=tuple(Step(a, b / a * b, b, n) for a, b, n in pairs))


def _two(level: float, known: Callable[[float], float], spec: CodecSpec) -> list[float]:
    """A known level and the nearest other one, falling: a schedule has a step at least."""
    for i in range(1, 128):
        above, below = known(level * RATIO**i), known(level / RATIO**i)
        if level < above < math.inf:
            return [above, level]
        if below < level:
            return [level, below]
    raise SpecError(f"backbone {spec.backbone!r} knows too few levels for a step: a codec needs two")


@cache
def shipped_curves() -> dict[str, Curve]:
    """The curves that come with the package, by the backbone's name."""
    folder = Path(__file__).parents[1] / "backbones" / "weights"
    curves = [Curve.from_json(path.read_text()) for path in sorted(folder.glob("*.curve.json"))]
    return {curve.backbone: curve for curve in curves}


def shipped_curve(backbone: "Backbone") -> Curve | None:
    """The curve that came with the backbone, if one did."""
    curve = shipped_curves().get(backbone.name)
    return curve if curve is not None and curve.fingerprint == backbone.fingerprint else None


def no_curve(backbone: "Backbone") -> str:
    """What to say of a backbone without a curve: the beginning of a message."""
    call = f"run `noisebook calibrate {backbone.name} IMAGES -o FILE`"
    return f"backbone {backbone.name!r} has no curve: {call}, with MODULE:FACTORY for the name if the class is yours"


def by_number(number: int) -> Curve | None:
    """The curve with that number in files."""
    return next((curve for curve in shipped_curves().values() if number and curve.number == number), None)
