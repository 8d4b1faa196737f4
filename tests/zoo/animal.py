"""What the zoo holds: a file, and the right pixels or the right reason beside it."""

from dataclasses import dataclass

import numpy as np

HEIGHT, WIDTH = 23, 19  # primes, and no side so short that it has a remark


@dataclass(frozen=True)
class Animal:
    """name     of the file; the part before its dot is its own in the zoo
    data     the file
    pixels   uint8 [H, W, 3], made of the array of which the file was made; None: it is refused
    within   grey levels by which any number may be off; 0 where nothing is lost
    remarks  exactly these
    code     of its failure row
    words    of its ImageError, a regular expression
    """

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    within: int = 0
    remarks: frozenset[str] = frozenset()
    code: str = ""
    words: str = "."


def taken(name, data, pixels, *remarks, within=0):
    pixels = np.array(pixels, np.uint8)  # its own: the array may change afterwards
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, 2)
    return Animal(name, data, np.broadcast_to(pixels, (*pixels.shape[:2], 3)), within, frozenset(remarks))


def refused(name, data, code, words):
    return Animal(name, data, code=code, words=words)


def noise(*shape, top=255, seed=0):
    """Integers 0..top, both among them."""
    values = np.random.default_rng([seed, *shape, top]).integers(0, top + 1, shape)
    values.flat[0], values.flat[-1] = top, 0
    return values


def smooth(height=HEIGHT, width=WIDTH):
    """uint8 [H, W, 3] that codecs with losses keep nearly."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return np.rint(np.stack([40 + 170 * y, 60 + 150 * x, 210 - 90 * x - 70 * y], 2)).astype(np.uint8)


def over_white(pixels, alpha, top=255):
    """uint8 [H, W, 3] of floats or integers 0..255 under alpha 0..top."""
    part = np.asarray(alpha)[:, :, None] / top
    return np.rint(np.asarray(pixels, np.float64) * part + 255 * (1 - part)).astype(np.uint8)


def eight(values, top):
    """Integers 0..top -> 0..255, rounded to nearest."""
    return ((np.asarray(values, np.int64) * 510 + top) // (2 * top)).astype(np.uint8)
