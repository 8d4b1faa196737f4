"""Modules and options of noisebook by their newest names, found under the older ones in an older checkout."""

import importlib
from dataclasses import fields
from functools import cache
from typing import Any

# where a name lies, the newest place first
PRESETS = ("noisebook.spec.presets", "noisebook.presets")
FILES = ("noisebook.images.files", "noisebook.files")
TARGETS = ("noisebook.images.targets", "noisebook.targets")
MODES = ("noisebook.codec.modes", "noisebook.modes")
CONTAINER = ("noisebook.format.container", "noisebook.container")
CURVE = ("noisebook.codec.measure", "noisebook.calibration")  # where one is measured

# newest spelling of an option -> the one before
OLD_WORDS = {
    "budget": "bins",
    "budget_last": "bins_last",
    "start_budget": "start_bins",
    "vocab_size": "vocabulary",
    "start_vocab_size": "start_vocabulary",
    "codebook": "law",
    "solver": "finish",
    "solver_steps": "finish_steps",
    "sigma_max": "lam_max",
    "sigma_min": "lam_min",
    "max_nfe": "max_calls",
}


def words(known: type, values: dict[str, Any]) -> dict[str, Any]:
    """These options as a dataclass of the checkout spells them."""
    names = {field.name for field in fields(known)}
    return {name if name in names else OLD_WORDS.get(name, name): value for name, value in values.items()}


@cache
def item(name: str, *modules: str) -> Any:
    """What the first of these modules that has the name calls so."""
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
            continue
        if hasattr(found, name):
            return getattr(found, name)
    raise ImportError(f"no {name} in {', '.join(modules)}")
