"""What a file has in place of a specification that a reader derives from a curve: docs/format.md.

uint32 little-endian, steps in the lowest 8 bits and tokens in the others; then, where the curve is scaled, a byte that
names the scaling.
"""

import struct
from collections.abc import Sequence

from noisebook.errors import FormatError
from noisebook.format.refusals import refuse

Derived = tuple[int, int] | tuple[int, int, int]  # steps, tokens and, if it is not UNSCALED, the scaling of the curve
SCALINGS, UNSCALED = 16, 8  # how many scalings there are, and the one that is written as none


def derived_of(steps: int, tokens: int, scaling: int = UNSCALED) -> Derived:
    """What a file says of them."""
    return (steps, tokens) if scaling == UNSCALED else (steps, tokens, scaling)


def scaling_of(derived: Derived) -> int:
    """The scaling of the curve, UNSCALED where none is said."""
    return derived[2] if len(derived) > 2 else UNSCALED


def derived_bytes(derived: Derived) -> bytes:
    """4 bytes, or 5 with a scaling. Raises FormatError where a number does not fit."""
    steps, tokens = derived[:2]
    if not (1 <= steps <= 0xFF and 1 <= tokens <= 0xFFFFFF):
        raise FormatError(f"{tokens} tokens in {steps} steps do not fit the format (at most 2^24 - 1 in 255)")
    _check(derived[2:])
    return struct.pack("<I", tokens << 8 | steps) + bytes(derived[2:])


def read_derived(data: bytes, at: int, left: int, scaled: bool) -> tuple[int, int, int, int]:
    """(steps, tokens, scaling, place of the payload) of what begins at `at`, of the `left` bytes before the checksum. Raises
    FormatError."""
    if left < 4 + scaled:
        refuse("derived")
    (value,) = struct.unpack_from("<I", data, at)
    if not value & 0xFF or not value >> 8:
        refuse("zero")
    scaling = data[at + 4 : at + 4 + scaled]
    _check(scaling)
    return value & 0xFF, value >> 8, scaling[0] if scaled else UNSCALED, at + 4 + scaled


def _check(scaling: Sequence[int]) -> None:
    """Raises FormatError for what names no scaling; the curve without a scaling is named by no byte at all."""
    if scaling and (scaling[0] == UNSCALED or not 0 <= scaling[0] < SCALINGS):
        raise FormatError(f"there is no scaling {scaling[0]} of a curve: the file is damaged, or newer than this noisebook")
