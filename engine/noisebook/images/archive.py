"""Reads the image archives that the fits and the trainers take."""

import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from noisebook.errors import ImageError, first_line, printable
from noisebook.images.reading import opened, opened_pixels
from noisebook.runtime.limits import DEFAULT, Limits, machine_memory, too_much

CHUNK = 1 << 20  # bytes that are unpacked at once
DEFLATED = 1033  # times that deflate shrinks data at most, rounded up
BROKEN = (  # TokenError and SyntaxError: numpy reads the header of a member with Python's own parser
    *(OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def load_npz_images(path: str | Path, count: int | None = None, limits: Limits = DEFAULT) -> list[np.ndarray]:
    """The first `count` images (None: all) of an .npz, each uint8 [H, W, C], values 0..255.

    The archive holds either `images`, uint8 [N, H, W, C] of one size, or `webp`, uint8 [bytes]: WebP files end to end,
    file k being `webp[offsets[k] : offsets[k + 1]]` with `offsets` integer [N + 1]; those come back as RGB, in any sizes.
    No more than these images is read. Raises ImageError where the file is no such archive, an image in it cannot be decoded
    or is larger than `limits.pixels`, or the images do not fit this machine's memory.
    """
    shown = printable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            return (_of_one_size if "images" in names else _webp_files)(archive, count, limits)
    except BROKEN as error:
        if isinstance(error, ImageError):
            raise ImageError(f"{shown}: {error}") from error
        what = f"no archive of images ({first_line(error)}); it needs `images`, or `webp` and `offsets`"
        raise ImageError(f"{shown}: {what}") from error


def _of_one_size(archive: zipfile.ZipFile, count: int | None, limits: Limits) -> list[np.ndarray]:
    with _member(archive, "images", 4) as (f, dtype, shape, fortran):
        if dtype != np.uint8:
            raise ImageError(f"`images` must be uint8 [N, H, W, C], not {dtype} {list(shape)}")
        n, height, width, channels = shape
        if n and not height * width * channels:
            raise ImageError(f"`images` of {list(shape)} hold no pixels")
        if refusal := too_much(f"its images of {height} x {width} pixels are", height * width, limits, "pixels"):
            raise ImageError(refusal)
        wanted = n if count is None else len(range(n)[:count])
        _refuse_beyond_memory((n if fortran else wanted) * height * width * channels)
        if fortran:  # the images do not lie one after the other
            whole = _filled(f, shape[::-1]).T
            return [np.ascontiguousarray(image) for image in whole[:wanted]]
        return [_filled(f, (height, width, channels)) for _ in range(wanted)]


def _webp_files(archive: zipfile.ZipFile, count: int | None, limits: Limits) -> list[np.ndarray]:
    with _member(archive, "offsets", 1) as (f, dtype, (entries,), _):
        if dtype.kind not in "iu":
            raise ImageError(f"`offsets` must be integers, not {dtype}")
        if refusal := too_much("the files in `webp` are", entries - 1, limits, "rows"):
            raise ImageError(refusal)
        wanted = entries if count is None else min(entries, len(range(max(0, entries - 1))[:count]) + 1)
        offsets = _filled(f, (wanted * dtype.itemsize,)).view(dtype).tolist()
    images: list[np.ndarray] = []
    with _member(archive, "webp", 1) as (f, dtype, (length,), _):
        if dtype != np.uint8:
            raise ImageError(f"`webp` must be uint8 [bytes], not {dtype}")
        if any(a > b for a, b in zip([0, *offsets], [*offsets, length], strict=True)):
            raise ImageError(f"its `offsets` are not in order, or lead out of the {length:,} bytes of `webp`")
        f.seek(offsets[0] if offsets else 0, os.SEEK_CUR)
        held = 0
        for begin, end in zip(offsets, offsets[1:], strict=False):
            _refuse_beyond_memory(held + end - begin)
            with opened(io.BytesIO(_filled(f, (end - begin,)).tobytes()), limits, ("WEBP",)) as image:
                held += 3 * image.size[0] * image.size[1]
                _refuse_beyond_memory(held)
                images.append(opened_pixels(image, 3))
    return images


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, axes: int) -> Iterator[tuple[IO[bytes], np.dtype, tuple[int, ...], bool]]:
    """An array of the archive: (its bytes from the first value on, dtype, shape, whether it lies in Fortran's order), as its
    header says; what the header says is held against the sizes in the archive, and these against the file's."""
    info = next((i for i in archive.infolist() if i.filename in (f"{name}.npy", name)), None)
    if info is None:
        raise KeyError(f"no {name!r}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f"`{name}` is neither stored nor deflated")
    with archive.open(info) as f:
        if np.lib.format.read_magic(f) != (1, 0):
            raise ImageError(f"`{name}` is no array of numbers")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
        if dtype.hasobject or len(shape) != axes or min(shape) < 0:
            raise ImageError(f"`{name}` must be an array of numbers with {axes} axes, not {dtype} {list(shape)}")
        claimed, there = math.prod(shape) * dtype.itemsize, info.file_size - f.tell()
        most = DEFLATED * min(info.compress_size, archive.start_dir)
        if claimed != there or info.file_size > most:
            raise ImageError(f"`{name}` claims {claimed:,} bytes, and its file has not that many")
        yield f, dtype, shape, fortran


def _filled(f: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """uint8 of that shape, read from a member. Raises ValueError where it ends too early."""
    out = np.empty(math.prod(shape), np.uint8)
    at = 0
    while at < len(out):
        data = f.read(min(CHUNK, len(out) - at))
        if not data:
            raise ValueError("it ends too early")
        out[at : at + len(data)] = np.frombuffer(data, np.uint8)
        at += len(data)
    return out.reshape(shape)


def _refuse_beyond_memory(size: int) -> None:
    if size > machine_memory():
        raise ImageError(f"its images take {size:,} bytes, more than this machine has: give a smaller count")
