"""JSON from a stranger: as the standard says, and no more."""

import json
import math
from collections.abc import Sequence
from typing import Any

MOST = 1 << 22  # bytes


def loads(text: str | bytes, most: int = MOST) -> Any:
    """The value of a text. Raises ValueError for what is no JSON, and for what the standard library lets pass: NaN, numbers
    beyond a float64, a key that an object has twice, brackets too deep to follow, and more than `most` bytes."""
    if len(text) > most:
        raise ValueError(f"more than {most} bytes of JSON")
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_no_number, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its brackets are too deep") from error


def whole(value: Any, low: int, high: int) -> bool:
    """Whether it is an integer (true and false are none) from `low` to `high`."""
    return type(value) is int and low <= value <= high


def number(value: Any) -> float:
    """A JSON number as a float. Raises TypeError for anything else, OverflowError for one that is too large."""
    if type(value) not in (int, float):
        raise TypeError(f"{type(value).__name__} where a number is due")
    return float(value)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"a number that is too large: {text[:40]}")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(out := dict(pairs)) != len(pairs):
        raise ValueError("an object has a key twice")
    return out
