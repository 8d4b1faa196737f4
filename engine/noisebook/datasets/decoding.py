"""From the bytes of a file to pixels, in worker processes: what fails gets a code, what was changed a remark."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from noisebook.datasets import memory
from noisebook.datasets.sources.base import (
    Changed,
    Failure,
    File,
    Item,
    Source,
    bad_key,
    open_file,
    refuse_changed,
    refuse_other,
)
from noisebook.datasets.sources.members import read_sparse
from noisebook.errors import ImageError, printable
from noisebook.images.numbers import Unsupported
from noisebook.images.reading import Postponed, TooLarge, read_picture
from noisebook.runtime.limits import DEFAULT, Limits


class Picture(NamedTuple):
    """Pixels uint8 [H, W, C], the upright picture's own height and width, and what was done that is worth a remark.

    The remarks are codes of `images.reading.REMARKS`.
    """

    pixels: np.ndarray
    height: int
    width: int
    remarks: tuple[str, ...] = ()


def decoder_version() -> str:
    """Pillow and the libraries under it: decoders differ in pixels."""
    parts = [
        f"{name} {features.version(name)}" for name in ("libjpeg_turbo", "zlib", "webp", "libtiff") if features.check(name)
    ]
    return f"pillow {Image.__version__} ({', '.join(parts)})"


def read_bytes(file: File, item: Item) -> bytes | Failure:
    """The bytes of an item that is a file, or a part of one."""
    sparse = item.sparse
    if not sparse and item.size >= 0 and (item.start < 0 or item.start + item.size > file.size):
        return Failure("unreadable", "the plan has it where its file ends")
    wanted = item.size if item.size >= 0 else file.size
    try:
        refuse_changed(file)  # before: to open a pipe in its place would wait for ever
        if file.place is not None and file.place.plain and not sparse:
            data = _read(file, file.place.path, item.start, wanted)
        else:
            with open_file(file) as f:
                if sparse:
                    data = read_sparse(f, item.start, item.size)
                else:
                    f.seek(item.start)
                    data = f.read(item.size) if item.size >= 0 else f.read()
            if file.place is not None and file.place.local:  # it may have changed meanwhile; an object store has versions
                refuse_changed(file)
    except Changed as error:
        return Failure("changed", str(error))
    except FileNotFoundError:
        return Failure("missing", "the file is gone")
    except Exception as error:  # libraries behind fsspec raise what they like
        if isinstance(error, MemoryError):
            raise
        return Failure("unreadable", printable(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200))
    return data if len(data) == wanted else Failure("changed", f"{len(data)} bytes where the plan has {wanted}")


def _read(file: File, path: str, start: int, size: int) -> bytes:
    """Up to `size` bytes of a file of this machine, from `start` on. Raises OSError, and Changed where it is not the one of
    the plan when they have been read."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        parts, left = [os.pread(handle, size, start)], size
        while parts[-1] and (left := left - len(parts[-1])):  # the system gives 2 GiB at once at most
            parts.append(os.pread(handle, left, start + size - left))
        refuse_other(file, os.fstat(handle))
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Later:
    """A picture of that many pixels is too large to be decoded beside the others."""

    pixels: int


def decode(
    data: bytes,
    name: str,
    channels: int,
    resize: int = 0,
    limits: Limits = DEFAULT,
    share: int | None = None,
    by_planes: bool = False,
) -> Picture | Failure | Later:
    """A picture of `channels` channels; with `resize` its shorter side is scaled to that many pixels (bicubic,
    antialiased), and the square in the middle kept.

    limits  `pixels`, and what of `memory` is for pictures that are decoded
    share   pixels that may be decoded here now; more gives Later
    by_planes   the pixels may lie in memory as [C, H, W], and where nobody may write
    """
    if not data:
        return Failure("empty", "no bytes")
    fits, within = _within(limits)
    try:
        pixels, remarks = read_picture(io.BytesIO(data), channels, within, name, share, by_planes and not resize)
    except Postponed as error:
        return Later(error.pixels)
    except Unsupported as error:
        return Failure("unsupported", str(error))
    except ImageError as error:
        cause = error.__cause__
        if isinstance(cause, UnidentifiedImageError):
            return Failure("not_an_image", str(error))
        if isinstance(cause, TooLarge) and fits < cause.height * cause.width <= limits.pixels:
            wanted = memory.size_text(memory.needed_to_decode(cause.height * cause.width))
            words = f"{cause.height} x {cause.width} pixels take too much memory to be decoded: --memory {wanted} is enough"
            return Failure("too_large", words)
        large = isinstance(cause, TooLarge | Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError)
        return Failure("too_large" if large else "damaged", str(error))
    height, width = pixels.shape[:2]
    return Picture(_square(pixels, resize) if resize else pixels, height, width, remarks)


@lru_cache(maxsize=4)
def _within(limits: Limits) -> tuple[int, Limits]:
    """(pixels that can be decoded, the limits with no more than these)."""
    fits = memory.decoded_pixels(limits)
    return fits, replace(limits, pixels=max(1, min(limits.pixels, fits)))


def _square(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    out = np.asarray(image.crop((left, top, left + side, top + side)))
    return out[:, :, None] if out.ndim == 2 else out


class Request(NamedTuple):
    """What a worker decodes: the item, its file or its bytes (or why there are none), and how."""

    item: Item
    file: File
    data: bytes | Failure | None
    channels: int
    resize: int
    limits: Limits = DEFAULT

    @property
    def bytes_there(self) -> int:
        """Bytes of the picture's file."""
        if self.data is not None:
            return len(self.data) if isinstance(self.data, bytes) else 0
        return self.item.size if self.item.size >= 0 else self.file.size


class Requests(Sized, Iterable[Request]):
    """A request for each of some items. They are made one by one, as they are asked for: their bytes may be many."""

    def __init__(self, source: Source, items: Sequence[Item], channels: int, resize: int, limits: Limits = DEFAULT):
        self.source, self.items, self.channels, self.resize, self.limits = source, items, channels, resize, limits

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Request]:
        files = self.source.files
        for item, data in zip(self.items, self.source.image_bytes(self.items), strict=True):
            yield Request(item, files[item.file], data, self.channels, self.resize, self.limits)


def requests_for(source: Source, items: Sequence[Item], channels: int, resize: int, limits: Limits = DEFAULT) -> Requests:
    """A request for each of these items."""
    return Requests(source, items, channels, resize, limits)


Answer = Picture | Failure | Later


def answer_to(request: Request, share: int | None = None, by_planes: bool = False) -> Answer:
    """A picture, or why there is none. `share`: pixels of a picture that may be decoded beside others; a larger one is a
    Later. `by_planes`: see `images.plain.read_plain`."""
    item, limits = request.item, request.limits
    if problem := item.problem or bad_key(item.key):  # a plan from elsewhere does not say so
        code, _, message = problem.partition(": ")
        return Failure(code, message)
    if request.bytes_there > (most := memory.file_bytes(limits)):
        size, wanted = request.bytes_there, memory.size_text(8 * request.bytes_there)
        return Failure("too_large", f"its file has {size:,} bytes, more than {most:,}: --memory {wanted} reads it")
    data = read_bytes(request.file, item) if request.data is None else request.data
    if isinstance(data, Failure):
        return data
    return decode(data, item.key + item.ending, request.channels, request.resize, limits, share, by_planes)
