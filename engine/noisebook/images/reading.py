"""Reads pictures: from a file, whatever its format, to uint8 pixels and remarks. Every command reads by this."""

import contextlib
import io
import os
import posixpath
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from noisebook.errors import ImageError, printable
from noisebook.images import formats as kinds
from noisebook.images import pixels as decoded
from noisebook.images import tiff
from noisebook.images.formats import FORMATS
from noisebook.images.numbers import Unsupported
from noisebook.images.pixels import ORIENTATION
from noisebook.images.plain import read_plain
from noisebook.runtime.limits import DEFAULT, Limits, too_much

TINY = 16  # pixels per side; smaller pictures get a remark
ENDINGS = {  # of names -> Pillow's names of formats
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "DIB",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".gif": "GIF",
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PPM"),
    ".avif": "AVIF",
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), "JPEG2000"),
    ".ico": "ICO",
    ".tga": "TGA",
    **dict.fromkeys(kinds.HEIF_SUFFIXES, "HEIF"),
}
REMARKS = {  # code -> what was done
    "exif": "its EXIF block is broken, and was ignored",
    "rotated": "turned as its EXIF says",
    "bits16": "more than 8 bits, scaled to 8",
    "scaled": "its white was taken from its largest number",
    "gray": "grey, in a codec of colours",
    "cmyk": "CMYK, converted to RGB",
    "profile": "its colours were converted to sRGB",
    "bad_profile": "its colour profile cannot be used; its numbers were taken as sRGB",
    "hdr": "HDR (PQ or HLG); its numbers were taken as sRGB",
    "alpha": "what is transparent lies over white",
    "animated": "animated; only the first frame was read",
    "pages": "it holds more pictures; only the first was read, of an icon the largest",
    "wrong_extension": "another format than its name says",
    "tiny": f"a side below {TINY} pixels",
}
WORTH_SAYING = ("exif", "scaled", "profile", "bad_profile", "hdr", "animated", "pages")  # to who encodes one file


class TooLarge(Image.DecompressionBombError):
    """A picture has more pixels than may be read; the cause of the ImageError that callers see."""

    def __init__(self, height: int, width: int):
        super().__init__(f"{height} x {width}")
        self.height, self.width = height, width


class Postponed(ImageError):
    """A picture of `pixels` pixels, more than were to be decoded now."""

    def __init__(self, pixels: int):
        super().__init__(f"{pixels:,} pixels")
        self.pixels = pixels


class Read(NamedTuple):
    """The pixels of a picture, uint8 [H, W, C], and what was done that is worth a remark, by the codes of `REMARKS`."""

    pixels: np.ndarray
    remarks: tuple[str, ...]


def read_image(path: str | Path | io.BytesIO, channels: int = 3, limits: Limits = DEFAULT) -> np.ndarray:
    """The picture as uint8 [H, W, C], upright (EXIF), in sRGB, transparency over white, scaled to 8 bits, first frame.

    Raises ImageError for what is no readable picture of one of `FORMATS`, and for more than `limits.pixels`.
    """
    return read_picture(path, channels, limits).pixels


def read_picture(
    path: str | Path | io.BytesIO,
    channels: int = 3,
    limits: Limits = DEFAULT,
    name: str = "",
    now: int | None = None,
    by_planes: bool = False,
) -> Read:
    """As `read_image`, with remarks. `name`: of the file, where `path` has none. `by_planes`: the pixels may lie in memory
    as [C, H, W], and where nobody may write. Raises Postponed for more than `now` pixels."""
    if channels == 3 and isinstance(path, io.BytesIO):
        most = limits.pixels if now is None else min(now, limits.pixels)
        if (plain := read_plain(path.getvalue(), most, by_planes)) is not None:
            height, width = plain[0].shape[:2]
            return Read(plain[0], tuple(_of_name_and_size(name, plain[1], height, width)))
    name = name or (os.fspath(path) if isinstance(path, (str, Path)) else "")
    with _opened_file(path) as file:
        head = file.read(kinds.HEAD)
        with _as_image_errors(limits):
            chunks = kinds.png_chunks(file)
            if chunks and kinds.refused_by_pillow(chunks):
                file = io.BytesIO(kinds.png_without(file, kinds.COLOURS))

        @contextlib.contextmanager
        def again(low: bool = False) -> Iterator[Any]:
            with opened(file, limits, name=name) as image:
                image.info.update(kinds.hidden_colours(image, file))
                facts = decoded.prepare(image, head, chunks)
                if low:
                    decoded.low_bytes(image)
                yield image if low else (image, facts)

        with opened(file, limits, name=name) as image:
            if now is not None and image.size[0] * image.size[1] > now:
                raise Postponed(image.size[0] * image.size[1])
            looked = _look(image, name, channels, chunks is None or not chunks.keys().isdisjoint(kinds.MAY_HOLD_EXIF))
        with again() as (image, facts):  # anew: to count frames may have moved it
            out, found = decoded.to_pixels(image, channels, facts, lambda: again(True))
        said = {*looked, *facts.colours.remarks, *found}
        return Read(out, tuple(code for code in REMARKS if code in said))


def opened_pixels(image: Any, channels: int) -> np.ndarray:
    """The pixels of a picture that is `opened` and no PNG, as `read_image`."""
    return decoded.to_pixels(image, channels, decoded.prepare(image, b"", None))[0]


@contextlib.contextmanager
def _opened_file(path: str | Path | io.BytesIO) -> Iterator[Any]:
    if isinstance(path, io.BytesIO):
        path.seek(0)
        yield path
        return
    with _as_image_errors(DEFAULT):
        file = open(path, "rb")  # noqa: SIM115 - closed below; errors of the block are not of opening
    with file:
        yield file


@contextlib.contextmanager
def opened(
    path: str | Path | Any, limits: Limits = DEFAULT, formats: tuple[str, ...] = FORMATS, name: str = ""
) -> Iterator[Any]:
    """A picture of Pillow's, its header read. `path`: also a file that is open, which stays so. `limits.pixels` takes the
    place of Pillow's own limit in the block, also for pictures inside of it (an icon), and for this thread only. What is
    raised in the block is an ImageError in the end."""
    token = _most.set(limits.pixels)
    try:
        with _as_image_errors(limits), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with _identified(path, formats, name) as image:
                _refuse_large(image.size)
                yield image
    finally:
        _most.reset(token)


@contextlib.contextmanager
def _identified(path: str | Path | Any, formats: tuple[str, ...], name: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb")) if isinstance(path, (str, Path)) else path
        file.seek(0)
        head = file.read(kinds.HEAD)
        if kinds.HEIF in formats:
            kinds.register_heif(head)
        if (what := kinds.kind_of(head)) and not (what == "HEIC" and kinds.has_heif()):
            raise UnidentifiedImageError(kinds.refusal(head, name, formats))
        file.seek(0)
        try:
            image = stack.enter_context(Image.open(file, formats=kinds.known(formats)))
        except UnidentifiedImageError:
            if head.startswith(tiff.MAGIC) and "TIFF" in formats:
                raise Unsupported(tiff.describe(file)) from None
            if (form := kinds.begins_as(head)) in formats:
                raise kinds.undecodable(form, file) from None
            raise UnidentifiedImageError(kinds.refusal(head, name, formats)) from None
        if image.format == "ICO":
            kinds.take_deepest(image)
        yield image


@contextlib.contextmanager
def _as_image_errors(limits: Limits) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(str(error)) from error
    except TooLarge as error:
        pixels = too_much(f"{error.height} x {error.width} pixels are", error.height * error.width, limits, "pixels")
        raise ImageError(str(pixels)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more pixels than Pillow takes for safe: {error}") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {printable(error.strerror or error, 200)}") from error
    except MemoryError as error:
        raise ImageError("too little memory to decode it") from error
    except Exception as error:  # Pillow's plug-ins raise what they like on damaged files
        raise ImageError(f"the file is damaged: {printable(str(error) or type(error).__name__, 200)}") from error


def _look(image: Any, name: str, channels: int, has_exif: bool) -> list[str]:
    """Remarks, from the header only: of a PNG with EXIF blocks, its pixels are decoded for it."""
    remarks = []
    deep = decoded.is_deep(image) or (image.format == "TIFF" and tiff.is_deep(image)) or image.info.get("bit_depth", 8) > 8
    try:
        if has_exif:
            image.getexif().get_ifd(0x8769)
            if image.info.get("exif") and not image.getexif():
                remarks.append("exif")
            turned_already = image.info.get("original_orientation")  # by pillow-heif
            if (turned_already or image.getexif().get(ORIENTATION, 1)) in range(2, 9):
                remarks.append("rotated")
    except Exception:
        remarks.append("exif")
    if image.mode.startswith(("I", "F")) or deep:
        remarks.append("bits16")
    if channels == 3 and image.mode in ("1", "L", "LA", "La"):
        remarks.append("gray")
    if image.mode == "CMYK":
        remarks.append("cmyk")
    if image.format == "ICO":
        remarks += ["pages"] if len(image.ico.entry) > 1 else []
    elif getattr(image, "n_frames", 1) > 1:
        remarks.append("pages" if image.format in ("TIFF", "MPO", "HEIF") else "animated")
    return remarks + _of_name_and_size(name, image.format, *image.size)


def _of_name_and_size(name: str, form: str, *sides: int) -> list[str]:
    """Remarks on a picture of this format."""
    remarks = []
    wanted = ENDINGS.get(posixpath.splitext(name.lower())[1])
    if wanted and wanted not in (form, "JPEG" if form == "MPO" else "", "BMP" if form == "DIB" else ""):
        remarks.append("wrong_extension")
    if min(sides) < TINY:
        remarks.append("tiny")
    return remarks


# ---- Pillow's own limit -------------------------------------------------------------------------------------------------
# Pillow has one limit for the whole process, a variable that is the caller's to set. All of Pillow, also the formats that
# hold other pictures, ask one function whether a size is too large: in the block of `opened` it answers by our limit, and
# everywhere else as ever.
_most: ContextVar[int | None] = ContextVar("_most", default=None)
_pillows_check = Image._decompression_bomb_check


def _refuse_large(size: tuple[int, int], *args: Any, **options: Any) -> None:
    most = _most.get()
    if most is None:
        _pillows_check(size, *args, **options)
    elif size[0] * size[1] > most:
        raise TooLarge(size[1], size[0])


Image._decompression_bomb_check = _refuse_large
