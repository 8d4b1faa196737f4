"""One codec of an experiment and the choices that are tried for it: what a row of a result file is, and what finds it.

Where a level is to be found (`choices`), it is found on images that are not evaluated. The recipes that more than one
experiment starts from stand here; trials.py measures rows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PCA = "pca-prior"
PCA_END = "pca-end-point"  # what a perfect consistency model of the PCA prior's Gaussian gives
Options = dict[str, Any]
STEPS = 31


def token(v: int, **more: Any) -> Options:
    """One token of vocabulary v for the start and for every step."""
    return {"start_budget": 1, "vocab_size": v, "start_vocab_size": v, **more}


def ends(*levels: float) -> list[Options]:
    """Choices of the last level."""
    return [{"sigma_min": sigma} for sigma in levels]


BASE = {"steps": STEPS, **token(1 << 16)}
LOG = {**BASE, "spacing": "log", "sigma_max": 3.0, "p": 0.5}
BITS = {
    256: ends(0.3, 0.5, 0.8, 1.2),
    512: ends(0.2, 0.35, 0.6),
    1024: ends(0.05, 0.1, 0.2, 0.35),
    2048: ends(0.025, 0.05, 0.1),
}


def at_rate(tokens: int, **more: Any) -> Options:
    """16 network calls with `tokens` bytes each."""
    recipe = {**LOG, "steps": 15, "budget": tokens, "start_budget": tokens, "vocab_size": 256, "start_vocab_size": 256}
    return {**recipe, **more}


@dataclass(frozen=True)
class Row:
    """One codec. `recipe` are options of `Recipe`, completed by the best of `choices`.

    The best is the one of the highest mean PSNR on the tuning images, tried on the backbone `tuned_on` with the recipe
    `tuned_as`: the row's own, or those of the row whose choice it takes over.
    """

    section: str
    label: str
    backbone: str
    recipe: Options
    choices: Sequence[Options] = ()
    tuned_on: str = ""
    tuned_as: Options | None = None
    walk: str = "gddcm"  # or "forced", see bench/paper/walks.py
    data: str = "cifar10"  # or "photos"
    long: bool = False  # left out on a CPU unless asked for

    def tuning(self) -> list[tuple[Options, Options]]:
        """(choice, settings of its trial) for each choice."""
        base = self.recipe if self.tuned_as is None else self.tuned_as
        where = self.tuned_on or self.backbone
        return [(c, settings(where, {**base, **c}, "gddcm", self.data)) for c in self.choices]

    def with_choice(self, choice: Options) -> Options:
        return settings(self.backbone, {**self.recipe, **choice}, self.walk, self.data)


def settings(backbone: str, recipe: Options, walk: str, data: str) -> Options:
    """What a result is known by."""
    return {"backbone": backbone, "walk": walk, "data": data, "recipe": dict(sorted(recipe.items()))}


def key(value: Mapping[str, Any]) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def resolved(row: Row, trials: Mapping[str, float]) -> Options | None:
    """The row's settings with its best choice, given the PSNR of the trials by key; None while one is missing."""
    if not row.choices:
        return row.with_choice({})
    if len(row.choices) == 1:
        return row.with_choice(row.choices[0])
    found = [(trials.get(key(trial)), choice) for choice, trial in row.tuning()]
    if any(psnr is None for psnr, _ in found):
        return None
    return row.with_choice(max(found, key=lambda pair: pair[0] or 0.0)[1])
