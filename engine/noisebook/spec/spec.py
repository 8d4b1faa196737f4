"""What a codec *is*: frozen values with a canonical JSON form and a hash that every file carries."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from noisebook.errors import SpecError
from noisebook.format.runs import CHUNK_PADDING, Run, chunk_runs

SPEC_VERSION = 1
LAWS = ("hadamard", "independent")
RULES = ("bins", "top", "pursuit", "poisson")
FINISHES = ("mean", "euler", "heun", "ab2")
MAX_STEPS = 1 << 16
CONDITION, START = -2, -1  # what `runs_for` calls the tokens before those of step 0


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _is_pow2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True)
class Step:
    """One step of the loop: from noise-to-signal ratio `lam` down to `lam_down` by the network, up to `lam_next` by noise.

    The first step of a schedule may begin at lam = inf, pure noise; there it goes down to any finite lam_down.
    `bins` is what each view spends on that noise, 0 where `lam_next == lam_down` (nothing is injected): bins of one token
    each, or by the codec's rule atoms (`top`, `pursuit`) or bits of Kullback-Leibler divergence (`poisson`).
    """

    lam: float
    lam_down: float
    lam_next: float
    bins: int

    def __post_init__(self) -> None:
        for name in ("lam", "lam_down", "lam_next"):  # 3 and 3.0 are the same level: one canonical form
            object.__setattr__(self, name, float(getattr(self, name)))
        finite = math.isfinite(self.lam_down) and math.isfinite(self.lam_next)
        _require(finite and self.lam > 0, f"step levels must be finite (lam may be inf) and lam above 0, not {self}")
        ordered = 0 <= self.lam_down <= self.lam_next <= self.lam and self.lam_down < self.lam
        _require(ordered, f"a step needs 0 <= lam_down <= lam_next <= lam and lam_down < lam, not {self}")
        _require(
            self.lam_down > 0 or self.lam_next == 0 or self.lam in (self.lam_next, math.inf),
            f"lam_down = 0 on a falling schedule (p = 0) throws all old noise away, not gDDCM's fixed point: {self}",
        )
        _require(
            (self.bins > 0) == (self.lam_next > self.lam_down),
            f"a step has tokens exactly when it injects noise (lam_next > lam_down), not {self}",
        )

    @property
    def keep(self) -> float:
        """Share of y - x0_hat that stays: lam_down / lam. From lam = inf, where y - x0_hat is unit noise: lam_down."""
        return self.lam_down if self.lam == math.inf else self.lam_down / self.lam

    @property
    def gain(self) -> float:
        """Standard deviation of the injected noise."""
        return math.sqrt((self.lam_next - self.lam_down) * (self.lam_next + self.lam_down))


@dataclass(frozen=True)
class CodecSpec:
    """Everything encoder and decoder must share.

    backbone, fingerprint  name and SHA-256 (hex) of the denoiser
    schedule               the steps, levels as exact float64
    law, vocabulary, seed  the codebook: vocabulary V is the number of values of a token (an atom and its sign)
    start_bins, start_vocabulary   tokens of the codebook start; start_bins = 0 is the fixed seeded draw
    rows, columns          the image is cut in so many blocks, each with codebooks and tokens of its own (1 x 1: 1-D tokens)
    finish                 `mean`: one last x0_hat; `euler`, `heun`, `ab2`: the probability-flow ODE through `finish_levels`
                           to 0 (finish.py)
    scale_pixels           0: `bins` are exact powers of two. Else `bins` are meant for an image of so many pixels and scale
                           with the size of the image, see `bins_for`
    rule                   how a step chooses (docs/rules.md): `bins`, one signed atom a bin; `top`, the M largest of all
                           (Turbo-DDCM); `pursuit`, M atoms one after the other with coefficients (DDCM); `poisson`, the
                           Poisson functional representation of chunks (DiffC), where the vocabulary 2^(c + 1) allows
                           chunks of up to c index bits
    coefficient_bits       rule `pursuit` alone: bits C of the coefficient of each atom after the first
    condition              (): none. Else the backbone's own tokens of the image come first and all steps are told them:
                           (pixels of a token on each axis, its values, what heights and widths are padded to a multiple of).
                           Then the schedule may be empty: the image is drawn from the condition alone, by the finish
    """

    backbone: str
    fingerprint: str
    schedule: tuple[Step, ...]
    law: Literal["hadamard", "independent"] = "hadamard"
    vocabulary: int = 65536
    seed: int = 0
    start_bins: int = 0
    start_vocabulary: int = 65536
    rows: int = 1
    columns: int = 1
    finish: Literal["mean", "euler", "heun", "ab2"] = "mean"
    finish_levels: tuple[float, ...] = field(default=())
    scale_pixels: int = 0
    rule: Literal["bins", "top", "pursuit", "poisson"] = "bins"
    coefficient_bits: int = 0
    condition: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "finish_levels", tuple(float(v) for v in self.finish_levels))
        self._check_condition()
        _require(
            bool(self.schedule or self.condition) and len(self.schedule) <= MAX_STEPS,
            f"a schedule has 1 ... {MAX_STEPS} steps",
        )
        for a, b in zip(self.schedule, self.schedule[1:], strict=False):
            _require(a.lam_next == b.lam, f"a step ends at lam {a.lam_next} but the next begins at {b.lam}")
        _require(self.law in LAWS, f"law must be one of {', '.join(LAWS)}, not {self.law!r}")
        for name, v in (("vocabulary", self.vocabulary), ("start_vocabulary", self.start_vocabulary)):
            _require(2 <= v <= 1 << 33 and v % 2 == 0, f"{name} must be an even number from 2 to 2^33, not {v}")
            _require(self.law != "hadamard" or _is_pow2(v), f"law hadamard needs a power of two as {name}, not {v}")
        _require(0 <= self.seed < 1 << 64, f"seed must be in [0, 2^64), not {self.seed}")
        _require(1 <= self.rows * self.columns <= 1 << 16 and self.rows > 0, "rows and columns must be at least 1")
        _require(0 <= self.scale_pixels <= 1 << 32, f"scale_pixels must be in [0, 2^32], not {self.scale_pixels}")
        for bins in (self.start_bins, *(s.bins for s in self.schedule)):
            _require(0 <= bins <= 1 << 24, f"bins must be in [0, 2^24], not {bins}")
            _require(
                bins == 0
                or self.scale_pixels > 0
                or _is_pow2(bins)
                or (self.rule != "bins" and bins is not self.start_bins),
                f"bins must be a power of two, not {bins} (or set scale_pixels, and they are rounded)",
            )
        self._check_rule()
        _require(self.finish in FINISHES, f"finish must be one of {', '.join(FINISHES)}, not {self.finish!r}")
        levels = (self.lam_last, *self.finish_levels)
        if self.finish == "mean":
            _require(not self.finish_levels, "the finish `mean` has no levels")
        elif self.lam_last > 0:
            falling = all(a > b >= 0 for a, b in zip(levels, levels[1:], strict=False)) and levels[-1] == 0
            _require(falling and len(levels) > 1, "finish_levels must fall from the last level to 0")

    @property
    def lam_first(self) -> float:
        """Where the walk begins."""
        return self.schedule[0].lam if self.schedule else math.inf

    @property
    def lam_last(self) -> float:
        """Where the finish begins: pure noise, inf, of a codec without steps."""
        return self.schedule[-1].lam_next if self.schedule else math.inf

    def _check_condition(self) -> None:
        if not self.condition:
            return
        _require(len(self.condition) == 3, f"condition is (pixels, values, multiple), not {self.condition}")
        pixels, values, multiple = self.condition
        fits = 1 <= pixels <= multiple <= 1 << 16 and multiple % pixels == 0 and _is_pow2(values) and 2 <= values <= 1 << 16
        _require(fits, f"a condition token of {values} values each {pixels} of a multiple of {multiple} pixels does not fit")
        _require(not self.start_bins, "a condition takes the place of a codebook start: start_bins must be 0")

    def _check_rule(self) -> None:
        _require(self.rule in RULES, f"rule must be one of {', '.join(RULES)}, not {self.rule!r}")
        c, most = self.coefficient_bits, max((s.bins for s in self.schedule), default=0)
        if self.rule == "pursuit":
            _require(
                c != 1, "coefficients of 1 bit know the single value 1, which adds nothing of a second atom: use 2 or more"
            )
            least = 2 if most > 1 or self.scale_pixels else 0
            _require(least <= c <= 16, f"rule pursuit needs coefficient_bits of 2 to 16, not {c}")
        else:
            _require(c == 0, f"coefficient_bits are for rule pursuit, not for {self.rule}")
        if self.rule == "top":
            _require(
                self.scale_pixels > 0 or most <= self.vocabulary // 2,
                f"{most} of {self.vocabulary // 2} atoms cannot be chosen",
            )
        if self.rule == "poisson":
            _require(self.units == 1, "rule poisson cuts chunks of its own: rows and columns must be 1")
            fits = _is_pow2(self.vocabulary) and 1 << CHUNK_PADDING + 2 <= self.vocabulary <= 1 << 25
            _require(fits, f"rule poisson needs a power of two from 16 to 2^25 as vocabulary, not {self.vocabulary}")

    # ---- JSON and hash ------------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, floats in their shortest form that reads back exactly; inf as null."""
        value = {"noisebook_spec": SPEC_VERSION, **asdict(self)}
        for name in YOUNGER:  # than the first files: absent where they say nothing
            if value[name] == getattr(CodecSpec, name):
                del value[name]
        value["schedule"] = [[None if s.lam == math.inf else s.lam, s.lam_down, s.lam_next, s.bins] for s in self.schedule]
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "CodecSpec":
        """The inverse of `to_json`. Raises SpecError on anything else."""
        try:
            value: dict[str, Any] = json.loads(text)
            if value.pop("noisebook_spec") != SPEC_VERSION:
                raise SpecError("the specification is of another version; update noisebook")
            known = {f.name: f.type for f in fields(cls)}
            value = {**{name: getattr(cls, name) for name in YOUNGER}, **value}
            if set(value) != set(known):
                raise SpecError(f"the specification has other fields: {sorted(set(value) ^ set(known))}")
            for name, expected in (("backbone", str), ("fingerprint", str), ("law", str), ("finish", str), ("rule", str)):
                _require(isinstance(value[name], expected), f"{name} must be a string")
            whole = (
                "vocabulary",
                "seed",
                "start_bins",
                "start_vocabulary",
                "rows",
                "columns",
                "scale_pixels",
                "coefficient_bits",
            )
            _require(all(type(value[n]) is int for n in whole), f"{', '.join(whole)} must be whole numbers")
            _require(len(value["schedule"]) <= MAX_STEPS, f"a schedule has 1 ... {MAX_STEPS} steps")
            steps = []
            for lam, lam_down, lam_next, bins in value["schedule"]:
                _require(type(bins) is int, "bins must be whole numbers")
                if lam is None:
                    _require(not steps, "only the first step of a schedule can begin at pure noise")
                    lam = math.inf
                steps.append(Step(float(lam), float(lam_down), float(lam_next), bins))
            value["schedule"] = tuple(steps)
            value["finish_levels"] = tuple(float(v) for v in value["finish_levels"])
            value["condition"] = tuple(value["condition"])
            _require(all(type(v) is int for v in value["condition"]), "condition must be whole numbers")
            return cls(**value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(f"not a codec specification: {error}") from error

    @property
    def hash(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the canonical JSON: the codec's identity in every file."""
        return hashlib.sha256(self.to_json().encode()).digest()[:8]

    # ---- how many tokens ------------------------------------------------------------------------------------------------
    @property
    def units(self) -> int:
        """Blocks of an image: each has a token stream of its own."""
        return self.rows * self.columns

    def bins_for(self, height: int, width: int) -> tuple[list[int], int]:
        """What each view spends at every step, and at the start, for images of that size (before padding).

        With scale_pixels, step t wants bins_t * pixels / scale_pixels; each gets the power of two (rules other than `bins`:
        the whole number) that brings the running sum nearest to what is wanted so far (integers only), so the rate is the
        same for every size of image. No step gets more than one token per 16 pixels.
        """
        wanted = [s.bins for s in self.schedule]
        if not self.scale_pixels:
            return wanted, self.start_bins
        pixels = height * width
        limit = max(1, pixels // (16 * self.units))
        out, target, spent = [], 0, 0
        for bins in wanted:
            target += bins
            missing = target * pixels - spent * self.scale_pixels
            if bins == 0:
                chosen = 0
            elif self.rule == "bins":
                chosen = _nearest_pow2(missing, self.scale_pixels, limit)
            else:
                chosen = max(1, (2 * missing + self.scale_pixels) // (2 * self.scale_pixels))
            spent += chosen
            out.append(chosen)
        start = self.start_bins and _nearest_pow2(self.start_bins * pixels, self.scale_pixels, limit)
        return out, start

    def condition_runs(self, height: int, width: int) -> tuple[Run, ...]:
        """The run of the condition's tokens, row by row, of an image of that size; none without a condition."""
        if not self.condition:
            return ()
        pixels, values, multiple = self.condition
        rows, columns = (-(-n // multiple) * multiple // pixels for n in (height, width))
        return (Run(rows * columns, values),)

    def start_runs(self, bins: int) -> tuple[Run, ...]:
        """The runs of the codebook start, all units together."""
        return (Run(bins * self.units, self.start_vocabulary),)

    def step_runs(self, bins: int) -> tuple[Run, ...]:
        """The runs of tokens of one step that spends `bins`, all units together. Raises SpecError for bins out of range."""
        if self.rule == "top":
            _require(bins <= self.vocabulary // 2, f"{bins} of {self.vocabulary // 2} atoms cannot be chosen")
            return (Run(bins * self.units, self.vocabulary, subset=bins),)
        if self.rule == "pursuit":
            later = Run((bins - 1) * self.units, 1 << self.coefficient_bits)
            return (Run(bins * self.units, self.vocabulary), *((later,) if bins > 1 else ()))
        if self.rule == "poisson":
            return chunk_runs(bins, self.vocabulary.bit_length() - 2)
        return (Run(bins * self.units, self.vocabulary),)

    def runs_for(self, height: int, width: int) -> list[tuple[int, Run]]:
        """The token stream of one image as (step, run); step -2 is the condition, -1 the codebook start. A step may have
        several runs."""
        bins, start = self.bins_for(height, width)
        runs = [(CONDITION, run) for run in self.condition_runs(height, width)]
        runs += [(START, run) for run in self.start_runs(start)] if start else []
        return runs + [(i, run) for i, count in enumerate(bins) if count for run in self.step_runs(count)]

    def warnings(self) -> list[str]:
        """The failure signs that the gDDCM paper names, as far as the specification shows them."""
        found = []
        if not self.schedule:
            return found
        last, first = self.lam_last, self.schedule[0]
        fixed = first.lam_next == first.lam
        if last > 1 or (fixed and first.lam > 1):
            found.append(
                f"the tokens end at lam = {max(last, first.lam if fixed else 0):.3g} > 1: the decoder will invent "
                "content (semantic drift); end at a lower level"
            )
        if any(s.bins == 1 for s in self.schedule) and self.vocabulary < 64:
            found.append(f"a vocabulary of {self.vocabulary} moves the noise little: quality stalls; use 256 or more")
        if not self.start_bins and first.lam < math.inf:
            found.append("the start is a fixed random draw; a codebook start (start_bins >= 1) is usually better")
        for s in self.schedule:
            if s.bins and s.lam_next < s.lam < math.inf:
                p = math.log(s.lam / s.lam_next) / math.log(s.lam / s.lam_down) if s.lam_down else 0.0
                if p < 0.3:
                    found.append(f"p = {p:.2f} on a falling schedule throws nearly all old noise away; use p >= 0.3")
                    break
        return found


YOUNGER = ("rule", "coefficient_bits", "condition")  # fields that the first files do not have


def _nearest_pow2(numerator: int, denominator: int, limit: int) -> int:
    """The power of two in [1, limit] nearest to numerator / denominator; the smaller of two equally near."""
    n = 1
    while 2 * n <= limit and 3 * n * denominator < 2 * numerator:  # 2n is nearer than n when the target is above 3n/2
        n *= 2
    return n
