"""Codecs by name, and recipes: the few numbers a specification is built from.

Presets are stored as finished specifications (`presets.json`), not recomputed, so that no rounding of another machine's
`exp` can change their hash. Their numbers stand in files: one that has been released is never reused or changed.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.errors import SpecError
from noisebook.rules import RULES
from noisebook.spec import curve as curves
from noisebook.spec import schedule
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.backbones import Backbone

PRESETS_FILE = Path(__file__).with_name("presets.json")
DEFAULT = "photo"
SIZE = (512, 768)  # (height, width) of the images that presets were made for: scale_pixels of their recipes
DRAWN = 25  # steps in which an image is drawn from its condition only


@dataclass(frozen=True)
class Recipe:
    """What `build` makes a specification of; every field is an option of the command line."""

    backbone: str = "photo-2"
    steps: int = 24
    spacing: str = "log"  # of the levels: log, karras, ddpm, flow, turbo or diffc; own: those of a discrete-time model
    sigma_max: float = 3.0  # first level
    sigma_min: float = 0.1  # last level
    p: float = 0.5  # 1/2: DDPM posterior; 0: gDDCM's fixed point at sigma_max; 1: no tokens
    rho: float | None = None  # p = 0 only: share of the noise kept each step, default 1 - 2 / steps
    budget: float = 1  # of a view at the first step: bins, atoms or bits, as the rule counts
    budget_last: float | None = None  # at the last step, growing by a constant factor in between; default: as the first
    scale_pixels: int = 0  # budgets are for images of that many pixels and scale with the size; 0: exact
    tokens: int = (
        0  # of an image of scale_pixels; > 0: start, levels and budgets as the backbone's curve says, if it has one
    )
    codebook: str = "hadamard"
    vocab_size: int = 65536
    seed: int = 0
    start_budget: int = 0
    start_vocab_size: int = 65536
    rows: int = 1
    columns: int = 1
    solver: str = "mean"
    solver_steps: int = 10  # of the ODE solvers
    rule: str = "bins"  # a name in noisebook.rules.RULES: docs/rules.md
    coefficient_bits: int = 0  # rule pursuit
    free_steps: int = 0  # the last ones, that many, carry no tokens and inject no noise (Turbo-DDCM)
    condition: str = (
        "none"  # the backbone's own tokens (CoD): none; first: before the others, which are conditioned on them; only
    )

    def build(self, backbone: "Backbone") -> CodecSpec:
        """The specification for `backbone`, its levels rounded to the model's grid. Raises SpecError for bad numbers."""
        if self.tokens < 0 or (self.tokens and not self.scale_pixels):
            raise SpecError("tokens must be 0, or the tokens of an image of scale_pixels pixels")
        if self.condition not in ("none", "first", "only"):
            raise SpecError(f"condition must be none, first or only, not {self.condition!r}")
        grid = backbone.condition_grid if self.condition != "none" else ()
        if grid is None:
            raise SpecError(f"backbone {backbone.name!r} has no condition tokens: only a CoD has")
        if self.condition == "only":
            kind = "ab2" if self.solver == "mean" else self.solver
            levels = schedule.even_levels(math.inf, self.steps)
            return CodecSpec(
                backbone.name, backbone.fingerprint, (), seed=self.seed, solver=kind, solver_levels=levels, condition=grid
            )
        curve = curves.shipped_curve(backbone)
        if self.tokens and curve is not None and curve.condition == grid:
            dims = curve.channels * self.scale_pixels
            spec = curves.spec_for(curve, dims, self.tokens, self.steps, self.vocab_size, self.seed)
            spec = replace(
                curves.with_known_levels(spec, backbone, dims), codebook=self.codebook, scale_pixels=self.scale_pixels
            )
        else:
            spec = CodecSpec(
                backbone=backbone.name,
                fingerprint=backbone.fingerprint,
                schedule=self._schedule(backbone),
                codebook=self.codebook,
                vocab_size=self.vocab_size,
                seed=self.seed,
                start_budget=self.start_budget,
                start_vocab_size=self.start_vocab_size,
                rows=self.rows,
                columns=self.columns,
                scale_pixels=self.scale_pixels,
                rule=self.rule,
                coefficient_bits=self.coefficient_bits,
                condition=grid,
            )
        end = spec.sigma_last
        solver_levels = ()
        if self.solver != "mean" and end > 0:
            even = schedule.even_levels if self.solver == "ab2" else schedule.solver_levels
            solver_levels = schedule.known_levels(end, even(end, self.solver_steps), backbone.round_sigma)
        return replace(spec, solver=self.solver, solver_levels=solver_levels)

    def _schedule(self, backbone: "Backbone") -> tuple[Step, ...]:
        """The steps that levels, p and budgets ask for."""
        if self.spacing not in (*schedule.SPACINGS, schedule.OWN):
            raise SpecError(f"spacing must be one of {', '.join(schedule.SPACINGS)}, own, not {self.spacing!r}")
        last = self.budget if self.budget_last is None else self.budget_last
        if not (self.budget > 0 and last > 0):
            raise SpecError("a budget must be above 0")
        if self.steps < 1:
            raise SpecError(f"a schedule needs at least 1 step, not {self.steps}")
        counts = schedule.geometric(self.budget, last, self.steps)
        if self.p == 0:
            return schedule.fixed_level(backbone.round_sigma(self.sigma_max), self.steps, counts, self.rho)
        if self.rho is not None:
            raise SpecError("rho is for p = 0 only: on a falling schedule p says how far each step goes down")
        levels = [backbone.round_sigma(sigma) for sigma in self._levels(backbone)]
        if self.condition == "first" and self.spacing != "diffc":  # whose first level is all but pure noise
            # a first step from pure noise, so that what the condition tells is known before any token is chosen
            levels, counts = [math.inf, *levels], schedule.geometric(self.budget, last, self.steps + 1)
        if any(a <= b for a, b in zip(levels, levels[1:], strict=False)):
            raise SpecError(
                f"the backbone's grid has fewer than {self.steps + 1} levels between {self.sigma_min} and "
                f"{self.sigma_max}; use fewer steps"
            )
        if not 0 <= self.free_steps < self.steps:
            raise SpecError(f"free_steps must be from 0 to {self.steps - 1} of {self.steps} steps, not {self.free_steps}")
        coded = len(levels) - 1 - self.free_steps
        steps = schedule.falling(levels[: coded + 1], self.p, counts[:coded])
        return steps + (schedule.falling(levels[coded:], 1, 0) if self.free_steps else ())

    def _levels(self, backbone: "Backbone") -> list[float]:
        """steps + 1 levels as `spacing` says."""
        if self.spacing != schedule.OWN:
            return schedule.SPACINGS[self.spacing](self.sigma_max, self.sigma_min, self.steps)
        own = backbone.own_grid()
        if own is None:
            why = f"backbone {backbone.name!r} is of continuous time and has no levels of its own"
            raise SpecError(f"{why}: take spacing {schedule.NAMES}")
        return schedule.own(own, self.sigma_max, self.sigma_min, self.steps)


CALIBRATED = {
    "backbone",
    "tokens",
    "scale_pixels",
    "steps",
    "codebook",
    "vocab_size",
    "seed",
    "solver",
    "solver_steps",
    "condition",
}  # with tokens


@dataclass(frozen=True)
class Preset:
    """A named codec: its number in files, the recipe it was built from, and the finished specification."""

    name: str
    number: int
    about: str
    recipe: Recipe
    spec: CodecSpec


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    out = {}
    for name, value in json.loads(PRESETS_FILE.read_text()).items():
        spec = CodecSpec.from_json(json.dumps(value["spec"]))
        out[name] = Preset(name, value["number"], value["about"], Recipe(**value["recipe"]), spec)
    return out


def get(name: str) -> Preset:
    """The preset of that name. Raises SpecError naming those that exist."""
    if name not in presets():
        raise SpecError(f"no preset {name!r}: there are {', '.join(presets())}")
    return presets()[name]


def by_hash(codec_hash: bytes) -> Preset | None:
    """The preset whose specification has that hash, which decides what a file was made with; None if there is none."""
    return next((p for p in presets().values() if p.spec.hash == codec_hash), None)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with some fields replaced; levels or budgets that the caller gives end a calibrated schedule. A `budget`
    without `budget_last` or `scale_pixels` is that of every step, whatever the size of the image: the preset's own last
    budget and its size belong to the preset's own first. Raises SpecError for a field that does not exist, or for both at
    once."""
    unknown = set(changes) - {f.name for f in fields(Recipe)}
    if unknown:
        raise SpecError(f"no option {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in fields(Recipe))}")
    if changes.get("tokens", 0) < 0:
        raise SpecError(f"tokens must be 0 or above, not {changes['tokens']}")
    other = sorted(set(changes) - CALIBRATED)
    if other and changes.get("tokens"):
        raise SpecError(f"tokens make their own schedule, and do not go with {', '.join(other)}")
    if changes.get("condition", "none") != "none":  # it takes the place of a start; by itself it is drawn as in CoD's paper
        changes = {"start_budget": 0, **({"steps": DRAWN} if changes["condition"] == "only" else {}), **changes}
    if "budget" in changes and "budget_last" not in changes:
        changes = {"budget_last": None, **changes}
        if "scale_pixels" not in changes:
            changes |= {"scale_pixels": 0, "budget": _whole(changes["budget"], changes.get("rule", recipe.rule))}
    return replace(recipe, **({"tokens": 0} if other else {}) | changes)


def _whole(budget: float, rule: str) -> float:
    """The nearest budget that a step of that rule can spend exactly; unchanged where `build` will refuse it."""
    powers = rule in RULES and RULES[rule].power_of_two_budget and 0 < budget < math.inf
    return 2 ** max(0, round(math.log2(budget))) if powers else budget


def check_tokens(backbone: "Backbone", **changes: Any) -> None:
    """Raises SpecError where the caller's `changes` ask for tokens, and the backbone has no curve that says how to spend
    them; those of a preset's own recipe are passed over then."""
    if not changes.get("tokens"):
        return
    curve = curves.shipped_curve(backbone)
    if curve is None:
        raise SpecError(
            f"{curves.no_curve(backbone)} and give --curve FILE with --bpp in place of --tokens, or give --budget"
        )
    if changes.get("condition", "none") != "none" and not curve.condition:
        raise SpecError(
            "the curve of that backbone says nothing of its condition tokens: give --budget in place of --tokens"
        )


def to_json(entries: list[Preset]) -> str:
    """The text of `presets.json`."""
    return (
        json.dumps(
            {
                p.name: {
                    "number": p.number,
                    "about": p.about,
                    "recipe": asdict(p.recipe),
                    "spec": json.loads(p.spec.to_json()),
                }
                for p in entries
            },
            indent=1,
        )
        + "\n"
    )
