"""Levels for one picture: which scaling of its curve's errors a file names.

A curve is the mean of many pictures, and pictures differ by 10 dB. A schedule that is made for an easier curve spends the
same tokens at other levels. An encoder finds the scaling by what the network errs on this picture, then by trying its
neighbours; a decoder reads it from the file (docs/calibration.md).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from noisebook.errors import SpecError
from noisebook.format.derived import SCALINGS, UNSCALED, Derived
from noisebook.images.files import encode_and_trace, encode_picture, first_errors
from noisebook.spec.curve import SCALES, Curve

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec

TRIES = 3  # whole encodes, if no other number is asked for
# What predicts: the errors between a sixth and half of a walk (the first ones are of a picture's mean and broad shapes).
# TRUST: what part of a picture's distance from the curve, in logarithms, the best scaling has. Of the steps and values that
# were tried, these gained most on seven photographs outside the training set.
SKIP, LOOK, TRUST = 6, 2, 0.5
LEAP = 2  # scalings from the outermost that was tried to the next one beyond it

Maker = Callable[[int], "tuple[Codec, Derived | None]"]  # scaling -> codec, and what its file has for a specification


class Chosen(NamedTuple):
    """A file, the codec that made it, and what finding it took: whole encodes, and network calls of the encoder."""

    data: bytes
    codec: "Codec"
    scaling: int = UNSCALED
    encodes: int = 1
    nfe: int = 0


class Tried(NamedTuple):
    """A file that was made and seen. `error`: mean squared error of the 8-bit picture, by the weights."""

    error: float
    data: bytes
    codec: "Codec"
    errors: dict[int, float]


def check_tries(tries: int) -> None:
    """Raises SpecError for a number of tries that there cannot be."""
    if not 1 <= tries <= SCALINGS:
        raise SpecError(f"tries of levels are from 1 to {SCALINGS}, not {tries}")


def best_levels(
    pixels: np.ndarray,
    curve: Curve,
    make: Maker,
    tries: int = TRIES,
    weights: np.ndarray | None = None,
    embed: bool | None = None,
    tell: Callable[[str], None] | None = None,
) -> Chosen:
    """The file of uint8 [H, W, C] with the least error among `tries` whole encodes.

    1       the scaling is predicted by half a walk on the curve's own levels, and encoded without being seen
    2 ...   the curve's own levels are encoded, which predict the scaling; then the predicted one; then those beside the
            best. The answer is never worse than with the curve's own levels
    `make` may raise SpecError for a scaling with which no file of the size can be had: it is passed over, unless it is the
    curve's own. `tell` is called with a line about what was found and what it took."""
    check_tries(tries)
    codec, derived = plain = make(UNSCALED)
    if tries == 1:
        steps = -(-len(codec.spec.schedule) // LOOK)
        scaling, nfe = predicted(curve, codec, first_errors(codec, pixels, steps)), steps + 1
        try:
            codec, derived = make(scaling)
        except SpecError:
            scaling, (codec, derived) = UNSCALED, plain
        data = encode_picture(codec, pixels, embed, weights, derived)
        chosen = Chosen(data, codec, scaling, 1, nfe + codec.encode_nfe)
        if tell:
            tell(f"  levels: {SCALES[scaling]:g} x the curve's errors, predicted; {chosen.nfe} network calls")
        return chosen
    tried = {UNSCALED: _tried(pixels, codec, derived, weights, embed)}
    passed, guess = set[int](), predicted(curve, codec, tried[UNSCALED].errors)
    while len(tried) < tries and len(tried) + len(passed) < SCALINGS:
        scaling = _nearest(guess, tried.keys() | passed)
        try:
            tried[scaling] = _tried(pixels, *make(scaling), weights, embed)
        except SpecError:
            passed.add(scaling)
        guess = _next(tried)
    scaling = min(tried, key=lambda k: (tried[k].error, abs(k - UNSCALED)))
    best = tried[scaling]
    nfe = sum(nfe_to_see(one.codec) for one in tried.values())
    if tell:
        gain = 10 * math.log10(max(tried[UNSCALED].error, 1e-9) / max(best.error, 1e-9))
        cost = f"{len(tried)} encodes, {nfe} network calls"
        tell(f"  levels: {SCALES[scaling]:g} x the curve's errors, {gain:+.2f} dB; {cost}")
    return Chosen(best.data, best.codec, scaling, len(tried), nfe)


def predicted(curve: Curve, codec: "Codec", errors: dict[int, float]) -> int:
    """The scaling that the errors of a walk promise, see `Codec.trace`: by the geometric mean of their ratios to the
    curve's between the first steps and half of the walk."""
    steps = codec.spec.schedule
    ratios = [
        math.log(max(error, 1e-12) / curve.at(steps[i].sigma))
        for i, error in errors.items()
        if max(1, len(steps) // SKIP) <= i < -(-len(steps) // LOOK) and steps[i].sigma < math.inf
    ]
    if not ratios:
        return UNSCALED
    wanted = TRUST * sum(ratios) / len(ratios)
    return min(range(SCALINGS), key=lambda k: abs(math.log(SCALES[k]) - wanted))


def nfe_to_see(codec: "Codec") -> int:
    """Network calls of an encode whose result is seen."""
    return codec.encode_nfe + codec.nfe - codec.spec.coded_steps


def _tried(
    pixels: np.ndarray, codec: "Codec", derived: Derived | None, weights: np.ndarray | None, embed: bool | None
) -> Tried:
    data, shown, errors = encode_and_trace(codec, pixels, embed, weights, derived)
    squares = np.square(shown.astype(np.float64) - pixels).mean(2)
    return Tried(float(np.average(squares, weights=weights)), data, codec, errors)


def _next(tried: dict[int, Tried]) -> int:
    """Where to try next: the middle of the wider gap beside the best, or beyond it where nothing lies there."""
    best = min(tried, key=lambda k: tried[k].error)
    below = max((k for k in tried if k < best), default=None)
    above = min((k for k in tried if k > best), default=None)
    if below is None or above is None:
        return best - LEAP if below is None else best + LEAP
    return (below + best) // 2 if best - below > above - best else (best + above + 1) // 2


def _nearest(guess: int, taken: set[int]) -> int:
    """The scaling nearest to `guess` that is not taken."""
    return min((k for k in range(SCALINGS) if k not in taken), key=lambda k: abs(k - guess))


__all__ = ["Chosen", "best_levels", "predicted"]
