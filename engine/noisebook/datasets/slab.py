"""Memory that a process shares with those that decode for it: pixels are written where they are read, and sent nowhere.

It has no name in any file system, so that nothing is left of it when its last process is gone, however that ended.
"""

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np

LARGEST = 16 << 20  # bytes of a part at most


class Slab:
    """Shared memory in `parts` equal parts of `size` bytes. The system gives pages of it as they are written.

    It can be handed to a process that is being started, and to no other."""

    def __init__(self, parts: int, size: int):
        self._map(_unnamed(parts * size), parts, size)
        self.free = list(range(parts))  # parts that nobody writes or reads

    def _map(self, handle: int, parts: int, size: int) -> None:
        self.handle, self.parts, self.size = handle, parts, size
        self.bytes = np.frombuffer(mmap.mmap(handle, parts * size), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (reduction.DupFd(self.handle), self.parts, self.size)

    def put(self, pixels: np.ndarray, start: int) -> None:
        """Copies uint8 [H, W, C] there, colour by colour."""
        planes = pixels.transpose(2, 0, 1)
        self.bytes[start : start + pixels.size].reshape(planes.shape)[:] = planes

    def planes(self, start: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
        """The memory of pictures of one `shape`, [H, W, C], that were put one after the other: uint8 [count, C, H, W]."""
        height, width, channels = shape
        end = start + count * height * width * channels
        return self.bytes[start:end].reshape(count, channels, height, width)

    def close(self) -> None:
        """Gives it back, with the last array that shows some of it."""
        os.close(self.handle)
        self.bytes = self.bytes[:0].copy()


def slab_for(parts: int, most: int) -> Slab | None:
    """A slab of at most `most` bytes; None where the system has no such memory."""
    size = min(LARGEST, most // parts) // mmap.PAGESIZE * mmap.PAGESIZE
    if os.name != "posix" or size == 0:
        return None
    try:
        return Slab(parts, size)
    except OSError:  # workers then send what they have decoded
        return None


def _unnamed(size: int) -> int:
    """The handle of a file of that size without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("noisebook", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    try:
        os.ftruncate(handle, size)
    except OSError:
        os.close(handle)
        raise
    return handle


def _attached(handle: Any, parts: int, size: int) -> Slab:
    slab = Slab.__new__(Slab)
    slab._map(handle.detach(), parts, size)
    return slab
