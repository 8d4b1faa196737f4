"""How the memory that a run may take (`--memory`) is shared out. All figures are bytes; a pixel is one of three colours.

A large picture, of more than 2^24 dimensions, is coded in other memory than the others: the codec works on it block by
block, and takes `LARGE` bytes for a pixel and `LARGE_BEGIN` in all (bench/results/large.json).

Two thirds of what the program itself leaves go to the codec; the rest is for pictures that are decoded or wait. What a codec
takes for a pixel of a batch was measured on the CPU with the shipped backbones: 260 to 510. A larger network takes more.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from noisebook.runtime.limits import Limits

PROGRAM = 384 << 20  # the libraries and a small network
CODING = 480  # of the codec, for each pixel of a batch
CODING_ELSEWHERE = 32  # the same where the codec works on a GPU: only pictures are held here
LARGE_FROM = (1 << 24) // 3  # pixels above which a picture is large
LARGE, LARGE_BEGIN = 64, 1 << 30
DECODING = 20  # while a picture is decoded, for each of its pixels
PIXEL = 3  # of a decoded picture


def coded_pixels(limits: Limits, device: str) -> int:
    """Pixels of a batch at most, and so of a picture that can be coded at all; `device`: the kind where the codec works."""
    each = CODING_ELSEWHERE if device == "cuda" else CODING
    return max(0, limits.memory_bytes - PROGRAM) * 2 // 3 // each


def needed(pixels: int, device: str) -> int:
    """The memory with which a picture of that many pixels can be coded."""
    if pixels > LARGE_FROM and device != "cuda":
        return LARGE * pixels + LARGE_BEGIN
    each = CODING_ELSEWHERE if device == "cuda" else CODING
    return -(-pixels * each * 3 // 2) + PROGRAM


def decoded_pixels(limits: Limits) -> int:
    """Pixels of pictures that are decoded at the same time at most, and so of a picture that can be decoded at all: one
    that can be coded can."""
    return max(limits.memory_bytes // 8 // DECODING, (limits.memory_bytes - LARGE_BEGIN) // LARGE)


def needed_to_decode(pixels: int) -> int:
    """The memory with which `decoded_pixels` are that many."""
    return min(8 * DECODING * pixels, LARGE * pixels + LARGE_BEGIN)


def file_bytes(limits: Limits) -> int:
    """Bytes of a picture's file at most."""
    return limits.memory_bytes // 8


def waiting_bytes(limits: Limits) -> int:
    """Bytes of files on their way to the workers, and of pictures on their way back."""
    return limits.memory_bytes // 16


def size_text(size: float) -> str:
    """12345678 -> 11.8MiB, rounded up: as --memory takes it."""
    for unit in ("", "K", "M"):
        if size < 1000:
            return f"{math.ceil(size * 10) / 10:g}{unit and unit + 'iB'}"
        size /= 1024
    return f"{math.ceil(size * 10) / 10:g}GiB"


def batch_pixels(limits: Limits, device: str, batch_size: int, sizes: set[tuple[int, int]] | None) -> int | None:
    """The bound on a batch as a plan records it; None where batches of `batch_size` images fit as they are. `sizes`: the
    (height, width) of all images, None where some are not known: then a power of two, so that machines that are nearly
    equal make the same plan."""
    most = coded_pixels(limits, device)
    largest = limits.pixels if sizes is None else max((height * width for height, width in sizes), default=1)
    if batch_size * largest <= most:
        return None
    if sizes is not None and len(sizes) == 1:
        return largest * max(1, most // largest)
    return 1 << max(0, most.bit_length() - 1)


@dataclass(frozen=True)
class Share:
    """What one of `of` equal processes may take of the memory of a run. What they refuse and how large batches are does not
    depend on it: what needs more than a share takes turns, each as long as it holds the file `place` locked."""

    of: int = 1
    place: str = ""

    def limits(self, limits: Limits) -> Limits:
        """The same with this share of the memory."""
        return limits if self.of == 1 else replace(limits, memory=max(1, limits.memory_bytes // self.of))

    @contextlib.contextmanager
    def turn(self, batch: Sequence[int], device: str, limits: Limits) -> Iterator[None]:
        """Inside, images [B, C, H, W] of that shape are coded. A process that is killed there leaves its turn."""
        if self.of == 1 or os.name != "posix" or together(batch, device) <= limits.memory_bytes // self.of:
            yield
            return
        import fcntl

        with open(self.place, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def together(batch: Sequence[int], device: str) -> int:
    """The memory in which images [B, C, H, W] of that shape are coded at once."""
    count, _, height, width = batch
    one = needed(height * width, device)
    return one if count == 1 else PROGRAM + count * (needed(min(height * width, LARGE_FROM), device) - PROGRAM)
