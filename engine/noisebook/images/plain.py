"""The picture that most data sets are full of, read without detours: 8 bits, three colours, nothing that changes them.

What a file may hold to count as plain is listed here, chunk by chunk and segment by segment; any other, and one in which
anything at all is wrong, is left to `reading`, which says what it is. Pixels and remarks are the same there.
"""

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

MOST = 1 << 24  # pixels; larger ones are left to `reading`, which holds Pillow to its limits
SMALL = 1 << 13  # pixels of a picture that is taken in one piece

_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = b"\0\0\0\rIHDR"
_RGB8 = b"\x08\x02\0\0"  # of a PNG's header: 8 bits, RGB, the one compression, the one filter
_FREE = (b"pHYs", b"tIME")  # chunks that say nothing about colours or turns
_END = b"IEND"
_FRAMES = (0xC0, 0xC1, 0xC2)  # of a JPEG: baseline, extended, progressive
_TABLES = (0xDB, 0xC4, 0xDD)  # quantisation, Huffman codes, restart interval
_SCAN, _JFIF, _COMMENT = 0xDA, 0xE0, 0xFE
#: a JPEG's first bytes that `formats.kind_of` takes for something else, and where
_OTHERS = ((4, b"ftyp"), (128, b"DICM"))


def read_plain(data: bytes, most: int, by_planes: bool = False) -> tuple[np.ndarray, str] | None:
    """(pixels uint8 [H, W, 3], Pillow's name of the format) of a plain PNG or JPEG of at most `most` pixels; None for any
    other file. `by_planes`: they may lie in memory colour by colour, [3, H, W], and where nobody may write."""
    kind: tuple[Callable[..., Any], str, tuple[int, int] | None]
    if data.startswith(_PNG):
        kind = PngImageFile, "PNG", _size_of_png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        kind = JpegImageFile, "JPEG", _size_of_jpeg(data)
    else:
        return None
    opener, form, size = kind
    if size is None or not 0 < size[0] * size[1] <= min(most, MOST):
        return None
    try:
        with opener(io.BytesIO(data)) as image:
            if image.size != size or image.mode != "RGB":
                return None
            return _pixels(image, by_planes), form
    except Exception:  # whatever it is, `reading` meets it again and has the words for it
        return None


def _pixels(image: Any, by_planes: bool) -> np.ndarray:
    width, height = image.size
    if by_planes and width * height > SMALL:
        planes = np.empty((3, height * width), np.uint8)
        for plane, colour in zip(planes, "RGB", strict=True):
            plane[:] = np.frombuffer(image.tobytes("raw", colour), np.uint8)
        return planes.reshape(3, height, width).transpose(1, 2, 0)
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)
    return pixels if by_planes else pixels.copy()


def _size_of_png(data: bytes) -> tuple[int, int] | None:
    """(width, height) where every chunk is one that a plain PNG has, and the sums of all but the free ones are right."""
    if data[8:16] != _HEADER or data[24:28] != _RGB8:
        return None
    at, end = 8, len(data)
    while at + 12 <= end:
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        after = at + 12 + size
        if kind not in _FREE:
            if (kind not in (b"IDAT", _END) and at > 8) or after > end:
                return None
            if zlib.crc32(memoryview(data)[at + 4 : after - 4]) != int.from_bytes(data[after - 4 : after]):
                return None
            if kind == _END:
                return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
        at = after
    return None


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) where every segment before the first scan is one that a plain JPEG has."""
    if any(data.startswith(start, at) for at, start in _OTHERS):
        return None
    at, end, found = 2, len(data), None
    while at + 4 <= end and data[at] == 0xFF:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == _SCAN:
            return found
        if at + 2 + size > end:  # the file is cut off in this segment
            return None
        if marker in _FRAMES:
            if found is not None or size != 17 or data[at + 4] != 8 or data[at + 9] != 3:
                return None
            found = int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        elif marker == _JFIF:
            if not data.startswith(b"JFIF\0", at + 4):
                return None
        elif marker not in _TABLES and marker != _COMMENT:
            return None
        at += 2 + size
    return None
