"""Numbers of more than 8 bits, signed numbers and floats: which of them is black, which is white.

The rule is on docs/datasets.md, "What a picture's numbers mean". A file seldom says how many of its bits are used, so the
largest number of a picture decides; what has no white by this rule is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from noisebook.errors import ImageError

TOPS = (255, 1023, 4095, 16383, 65535)  # white of 8, 10, 12, 14 and 16 bits
OVERSHOOT = 0.1  # of the range: filters go that far beyond black and white; it is cut off
DARK = 16  # a float picture of 0..255 whose largest number is below may be one of another range


class Unsupported(ImageError):
    """A picture of a format that is read, but of a kind that is not: its numbers would be guesses."""


@dataclass(frozen=True)
class Numbers:
    """What a file says about its numbers: `kind` "uint", "int" or "float", their `bits`; `top`: white, where the format says
    it; `inverted`: 0 is white."""

    kind: str = "uint"
    bits: int = 8
    top: int | None = None
    inverted: bool = False


@dataclass(frozen=True)
class Scale:
    """From numbers to grey levels: `top` is white, 0 black. `inferred`: by the rule, the file does not say so."""

    top: float
    inferred: bool
    inverted: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Any integers or floats -> uint8 of the same shape, rounded to nearest."""
        if values.dtype.kind == "f":
            out = np.rint(np.clip(values.astype(np.float64) * (255 / self.top), 0, 255)).astype(np.uint8)
        else:
            top = int(self.top)
            out = ((values.astype(np.int64).clip(0, top) * 510 + top) // (2 * top)).astype(np.uint8)
        return 255 - out if self.inverted else out


def scale_of(numbers: Numbers, strips: Iterable[np.ndarray]) -> Scale:
    """The scale of a picture with these numbers, given in parts. Raises Unsupported where the rule knows no white."""
    low, high = np.inf, -np.inf
    for values in strips:
        low, high = min(low, values.min()), max(high, values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise Unsupported("its numbers are not all finite (NaN or infinity): write it again without them")
    if numbers.kind == "float":
        return Scale(_top_of_floats(float(low), float(high)), True, numbers.inverted)
    if numbers.top is not None:
        return Scale(numbers.top, False, numbers.inverted)
    low, high = int(low), int(high)
    if low < 0:
        raise Unsupported(
            f"its numbers go from {low:,} to {high:,}: which of them is black is not known; write it as 0 to 65,535"
        )
    top, inferred = top_of(high, numbers.bits - (numbers.kind == "int"))
    return Scale(top, inferred, numbers.inverted)


def top_of(high: int, bits: int) -> tuple[int, bool]:
    """(white of integers of `bits` bits of which the largest is `high`, whether that is less than they could hold)."""
    most = (1 << bits) - 1
    for top in TOPS:
        if high <= top < most:
            return top, True
    if high < most >> 4 and bits > 16:
        raise Unsupported(
            f"its largest number is {high:,} of {bits} bits: which is white is not known; write it as 0 to 65,535"
        )
    return most, False


def _top_of_floats(low: float, high: float) -> float:
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return 1.0
    if low >= -255 * OVERSHOOT and DARK <= high <= 255 * (1 + OVERSHOOT):
        return 255.0
    raise Unsupported(f"its numbers go from {low:g} to {high:g}: they must be from 0 to 1, or from 0 to 255")
