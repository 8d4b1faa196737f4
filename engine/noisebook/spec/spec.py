"""What a codec *is*: frozen values with a canonical JSON form and a hash that every file carries."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from noisebook.errors import SpecError, printable
from noisebook.format.runs import Run
from noisebook.rules import RULES, Rule
from noisebook.runtime import strict_json
from noisebook.spec.step import Step, StepIndex, require

SPEC_VERSION = 1
CODEBOOKS = ("hadamard", "independent")
SOLVERS = ("mean", "euler", "heun", "ab2")
MAX_STEPS = 1 << 16
MAX_NAME = 255  # bytes in UTF-8
CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of characters
FINGERPRINT = re.compile("[0-9a-f]{64}")
# What a specification's JSON calls an attribute, where the words differ: the JSON is hashed, and files carry it.
KEYS = {
    "codebook": "law",
    "vocab_size": "vocabulary",
    "start_budget": "start_bins",
    "start_vocab_size": "start_vocabulary",
    "solver": "finish",
    "solver_levels": "finish_levels",
}
YOUNGER = ("rule", "coefficient_bits", "condition", "resolutions")  # keys that the first files do not have
WHOLE = (
    "vocab_size",
    "seed",
    "start_budget",
    "start_vocab_size",
    "rows",
    "columns",
    "scale_pixels",
    "coefficient_bits",
    "resolutions",
)
RESOLUTIONS = 2  # of a picture that is cut: 1/2 and 1/4


def _is_pow2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True)
class CodecSpec:
    """Everything encoder and decoder must share.

    backbone, fingerprint  name and SHA-256 (hex) of the denoiser
    schedule               the steps, levels as exact float64
    codebook, vocab_size, seed   the codebook; vocab_size V is the number of values of a token (an atom and its sign)
    start_budget, start_vocab_size   tokens of the codebook start; start_budget = 0 is the fixed seeded draw
    rows, columns          the image is cut in that many blocks, each with its own codebooks and tokens (1 x 1: 1-D
                           tokens)
    solver                 how the walk ends: `mean`, one last x0_hat; `euler`, `heun`, `ab2`, the probability-flow ODE
                           through `solver_levels` to 0 (codec/solvers.py)
    scale_pixels           0: budgets are exact. Otherwise they are meant for an image of that many pixels and scale with the
                           size of the image, see `budgets_for`
    rule                   how a step chooses: a name in `noisebook.rules.RULES` (docs/rules.md); under `poisson` a
                           vocab_size of 2^(c + 1) allows chunks of up to c index bits
    coefficient_bits       rule `pursuit` only: bits C of the coefficient of each atom after the first
    condition              (): none. Otherwise the backbone's own tokens of the image come first and all steps are
                           conditioned on them: (pixels of a token on each axis, its values, what heights and widths are
                           padded to a multiple of). Then the schedule may be empty: the image is drawn from the condition
                           only, by the solver
    resolutions            0, of all pictures up to 2^24 dimensions. Above 0 the picture is large: the network runs over
                           tiles, and that many tokens come first, which say how many steps it runs at 1/2, 1/4, ... of
                           the resolution (codec/tiles.py)
    """

    backbone: str
    fingerprint: str
    schedule: tuple[Step, ...]
    codebook: str = "hadamard"  # or "independent"
    vocab_size: int = 65536
    seed: int = 0
    start_budget: int = 0
    start_vocab_size: int = 65536
    rows: int = 1
    columns: int = 1
    solver: str = "mean"  # or "euler", "heun", "ab2"
    solver_levels: tuple[float, ...] = field(default=())
    scale_pixels: int = 0
    rule: str = "bins"
    coefficient_bits: int = 0
    condition: tuple[int, ...] = ()
    resolutions: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver_levels", tuple(float(v) for v in self.solver_levels))
        self._check_condition()
        steps = len(self.schedule)
        require(bool(self.schedule or self.condition) and steps <= MAX_STEPS, f"a schedule has 1 ... {MAX_STEPS} steps")
        for a, b in zip(self.schedule, self.schedule[1:], strict=False):
            if a.sigma_next != b.sigma:
                raise SpecError(f"a step ends at sigma {a.sigma_next} but the next begins at {b.sigma}")
        require(self.codebook in CODEBOOKS, f"codebook must be one of {', '.join(CODEBOOKS)}, not {self.codebook!r}")
        for name, v in (("vocab_size", self.vocab_size), ("start_vocab_size", self.start_vocab_size)):
            require(2 <= v <= 1 << 33 and v % 2 == 0, f"{name} must be an even number from 2 to 2^33, not {v}")
            plain = self.codebook != "hadamard" or _is_pow2(v)
            require(plain, f"codebook hadamard needs a power of two as {name}, not {v}")
        require(0 <= self.seed < 1 << 64, f"seed must be in [0, 2^64), not {self.seed}")
        require(1 <= self.rows * self.columns <= 1 << 16 and self.rows > 0, "rows and columns must be at least 1")
        require(0 <= self.scale_pixels <= 1 << 32, f"scale_pixels must be in [0, 2^32], not {self.scale_pixels}")
        require(self.rule in RULES, f"rule must be one of {', '.join(RULES)}, not {self.rule!r}")
        self._check_budgets()
        require(self.solver in SOLVERS, f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}")
        levels = (self.sigma_last, *self.solver_levels)
        if self.solver == "mean":
            require(not self.solver_levels, "the solver `mean` has no levels")
        elif self.sigma_last > 0:
            falling = all(a > b >= 0 for a, b in zip(levels, levels[1:], strict=False)) and levels[-1] == 0
            require(falling and len(levels) > 1, "solver_levels must fall from the last level to 0")

    @property
    def sigma_first(self) -> float:
        """Where the walk begins."""
        return self.schedule[0].sigma if self.schedule else math.inf

    @property
    def sigma_last(self) -> float:
        """Where the solver begins: pure noise, inf, of a codec without steps."""
        return self.schedule[-1].sigma_next if self.schedule else math.inf

    @property
    def coded_steps(self) -> int:
        """Steps of the schedule that an encoder must walk: all up to the last that has tokens."""
        return max((i + 1 for i, step in enumerate(self.schedule) if step.budget), default=0)

    @property
    def rule_type(self) -> type[Rule]:
        """The class of the rule: its checks, runs and how its tokens pack."""
        return RULES[self.rule]

    def cut(self, rows: int, columns: int) -> "CodecSpec":
        """The codec of a picture that is too large for one block: the same in rows x columns blocks, with the network over
        tiles. With scale_pixels the picture has as many tokens as it would have whole; exact budgets are of a block."""
        scale = self.scale_pixels * rows * columns
        return replace(self, rows=rows, columns=columns, scale_pixels=scale, resolutions=RESOLUTIONS)

    def _check_condition(self) -> None:
        if not self.condition:
            return
        require(len(self.condition) == 3, f"condition is (pixels, values, multiple), not {self.condition}")
        pixels, values, multiple = self.condition
        fits = 1 <= pixels <= multiple <= 1 << 16 and multiple % pixels == 0 and _is_pow2(values) and 2 <= values <= 1 << 16
        require(fits, f"a condition token of {values} values each {pixels} of a multiple of {multiple} pixels does not fit")
        require(not self.start_budget, "a condition takes the place of a codebook start: start_budget must be 0")

    def _check_budgets(self) -> None:
        budgets, scaled = [s.budget for s in self.schedule], self.scale_pixels > 0
        exact = [self.start_budget, *(budgets if self.rule_type.power_of_two_budget else ())]
        for budget in {self.start_budget, *budgets}:
            require(0 <= budget <= 1 << 24, f"a budget must be in [0, 2^24], not {budget}")
        for budget in set(exact):
            rounded = budget == 0 or scaled or _is_pow2(budget)
            require(rounded, f"a budget must be a power of two, not {budget} (or set scale_pixels, and it is rounded)")
        if self.resolutions:
            require(self.resolutions <= 8, f"resolutions must be at most 8, not {self.resolutions}")
            require(not self.condition, "a large picture takes no condition: it is of a whole image and not of its tiles")
            in_order = not self.rule_type.chunked and not self.coefficient_bits
            require(in_order, f"rule {self.rule} takes no picture above 2^24 dimensions: use rule bins")
        self.rule_type.check_spec(self.vocab_size, self.coefficient_bits, budgets, scaled, self.blocks)

    # ---- JSON and hash ------------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, floats in their shortest form that reads back exactly; inf as null."""
        value: dict[str, Any] = {KEYS.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        value["noisebook_spec"] = SPEC_VERSION
        for name in YOUNGER:  # than the first files: absent where they say nothing
            if value[name] == getattr(CodecSpec, name):
                del value[name]
        value["schedule"] = [
            [None if s.sigma == math.inf else s.sigma, s.sigma_down, s.sigma_next, s.budget] for s in self.schedule
        ]
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "CodecSpec":
        """The inverse of `to_json`. Raises SpecError on anything else, in one line of bounded length."""
        try:
            return cls._from_value(strict_json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            words = str(error) if isinstance(error, SpecError) else f"not a codec specification: {error}"
            raise SpecError(printable(words, 300)) from error

    @classmethod
    def _from_value(cls, value: Any) -> "CodecSpec":
        require(isinstance(value, dict) and "noisebook_spec" in value, "not a codec specification: it does not say so")
        if value.pop("noisebook_spec") != SPEC_VERSION:
            raise SpecError("the specification is of another version; update noisebook")
        known = {KEYS.get(f.name, f.name): f.name for f in fields(cls)}
        value = {**{name: getattr(cls, name) for name in YOUNGER}, **value}
        if set(value) != set(known):
            raise SpecError(f"the specification has other fields: {sorted(set(value) ^ set(known))[:10]}")
        given = {known[key]: v for key, v in value.items()}
        for name in ("backbone", "fingerprint", "codebook", "solver", "rule"):
            require(isinstance(given[name], str), f"{name} must be a string")
        if reason := identity_fault(given["backbone"], given["fingerprint"]):
            raise SpecError(reason)
        fits = all(strict_json.whole(given[name], 0, (1 << 64) - 1) for name in WHOLE)
        require(fits, f"{', '.join(WHOLE)} must be whole numbers from 0 to 2^64 - 1")
        given["schedule"] = _steps_from(given["schedule"])
        require(len(given["solver_levels"]) <= MAX_STEPS, f"a solver has at most {MAX_STEPS} levels")
        given["solver_levels"] = tuple(strict_json.number(v) for v in given["solver_levels"])
        given["condition"] = tuple(given["condition"])
        fits = len(given["condition"]) in (0, 3) and all(strict_json.whole(v, 0, 1 << 16) for v in given["condition"])
        require(fits, "condition must be no or three whole numbers up to 2^16")
        return cls(**given)

    @property
    def hash(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the canonical JSON: the codec's identity in every file."""
        return hashlib.sha256(self.to_json().encode()).digest()[:8]

    # ---- how many tokens ------------------------------------------------------------------------------------------------
    @property
    def blocks(self) -> int:
        """Blocks of an image: each has its own token stream."""
        return self.rows * self.columns

    def budgets_for(self, height: int, width: int) -> tuple[list[int], int]:
        """What each view spends at every step, and at the start, for images of that size (before padding).

        With scale_pixels, step t wants budget_t * pixels / scale_pixels. Each gets the number (of some rules a power of two)
        that brings the running sum nearest to what is wanted so far (integers only), so the rate is the same for every size
        of image. No power of two is above one token per 16 pixels.
        """
        wanted = [s.budget for s in self.schedule]
        if not self.scale_pixels:
            return wanted, self.start_budget
        pixels = height * width
        limit = max(1, pixels // (16 * self.blocks))
        out, target, spent = [], 0, 0
        for budget in wanted:
            target += budget
            missing = target * pixels - spent * self.scale_pixels
            if budget == 0:
                chosen = 0
            elif self.rule_type.power_of_two_budget:
                chosen = _nearest_pow2(missing, self.scale_pixels, limit)
            else:
                chosen = max(1, (2 * missing + self.scale_pixels) // (2 * self.scale_pixels))
            spent += chosen
            out.append(chosen)
        start = self.start_budget and _nearest_pow2(self.start_budget * pixels, self.scale_pixels, limit)
        return out, start

    def condition_runs(self, height: int, width: int) -> tuple[Run, ...]:
        """The run of the condition's tokens, row by row, of an image of that size; none without a condition."""
        if not self.condition:
            return ()
        pixels, values, multiple = self.condition
        rows, columns = (-(-n // multiple) * multiple // pixels for n in (height, width))
        return (Run(rows * columns, values),)

    def resolution_runs(self) -> tuple[Run, ...]:
        """The run of the tokens that say at which steps the network runs at a lower resolution; none of most pictures."""
        vocab_size = min(256, 1 << (len(self.schedule) + 1).bit_length())  # from 0 to all steps and the last prediction
        return (Run(self.resolutions, vocab_size),) if self.resolutions else ()

    def start_runs(self, budget: int) -> tuple[Run, ...]:
        """The runs of the codebook start, all blocks together."""
        return (Run(budget * self.blocks, self.start_vocab_size),)

    def step_runs(self, budget: int) -> tuple[Run, ...]:
        """The runs of tokens of one step that spends `budget`, all blocks together. Raises SpecError where it cannot."""
        return tuple(Run(*run) for run in self.rule_type.runs(budget, self.blocks, self.vocab_size, self.coefficient_bits))

    def runs_for(self, height: int, width: int) -> list[tuple[int, Run]]:
        """The token stream of one image as (step index, run), see `StepIndex`. A step may have several runs."""
        budgets, start = self.budgets_for(height, width)
        runs: list[tuple[int, Run]] = [(StepIndex.RESOLUTION, run) for run in self.resolution_runs()]
        runs += [(StepIndex.CONDITION, run) for run in self.condition_runs(height, width)]
        runs += [(StepIndex.START, run) for run in self.start_runs(start)] if start else []
        return runs + [(i, run) for i, budget in enumerate(budgets) if budget for run in self.step_runs(budget)]

    def warnings(self) -> list[str]:
        """The failure signs that the gDDCM paper names, as far as the specification shows them."""
        found = []
        if not self.schedule:
            return found
        last, first = self.sigma_last, self.schedule[0]
        fixed = first.sigma_next == first.sigma
        if last > 1 or (fixed and first.sigma > 1):
            found.append(
                f"the tokens end at sigma = {max(last, first.sigma if fixed else 0):.3g} > 1: the decoder will invent "
                "content (semantic drift); end at a lower level"
            )
        if any(s.budget == 1 for s in self.schedule) and self.vocab_size < 64:
            found.append(f"a vocabulary of {self.vocab_size} moves the noise little: quality stalls; use 256 or more")
        if not self.start_budget and first.sigma < math.inf:
            found.append("the start is a fixed random draw; a codebook start (start_budget >= 1) is usually better")
        for s in self.schedule:
            if s.budget and s.sigma_next < s.sigma < math.inf:
                p = math.log(s.sigma / s.sigma_next) / math.log(s.sigma / s.sigma_down) if s.sigma_down else 0.0
                if p < 0.3:
                    found.append(f"p = {p:.2f} on a falling schedule throws nearly all old noise away; use p >= 0.3")
                    break
        return found


def _steps_from(rows: Any) -> tuple[Step, ...]:
    """The schedule of a specification's JSON: rows of (sigma or null, sigma_down, sigma_next, budget)."""
    require(isinstance(rows, list) and len(rows) <= MAX_STEPS, f"a schedule is a list of at most {MAX_STEPS} steps")
    steps: list[Step] = []
    for row in rows:
        require(isinstance(row, list) and len(row) == 4, "a step is a list of four numbers")
        sigma, sigma_down, sigma_next, budget = row
        require(strict_json.whole(budget, 0, 1 << 24), "budgets must be whole numbers in [0, 2^24]")
        if sigma is None:
            require(not steps, "only the first step of a schedule can begin at pure noise")
            sigma = math.inf
        elif not strict_json.number(sigma) < math.inf:
            raise SpecError("a level is too large")
        steps.append(Step(float(sigma), strict_json.number(sigma_down), strict_json.number(sigma_next), budget))
    return tuple(steps)


def identity_fault(backbone: str, fingerprint: str) -> str | None:
    """Why no file can name this backbone; None where it can. What a name is made of is shown to users and compared, never
    opened, but a file with any other name could not be shown or written."""
    if len(backbone.encode(errors="surrogatepass")) > MAX_NAME or CONTROLS.search(backbone):
        return f"a backbone's name has at most {MAX_NAME} bytes and no control characters, not {printable(backbone, 100)!r}"
    if not FINGERPRINT.fullmatch(fingerprint):
        return f"a backbone's fingerprint is 64 hex digits in lower case, not {printable(fingerprint, 100)!r}"
    return None


def _nearest_pow2(numerator: int, denominator: int, limit: int) -> int:
    """The power of two in [1, limit] nearest to numerator / denominator; the smaller of two equally near."""
    n = 1
    while 2 * n <= limit and 3 * n * denominator < 2 * numerator:  # 2n is nearer than n when the target is above 3n/2
        n *= 2
    return n
