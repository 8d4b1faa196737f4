"""From the bytes of a file to pixels, in worker processes: what fails gets a code, what was changed a remark."""

import io
import os
import posixpath
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from noisebook.datasets.sources.base import Changed, Failure, File, Item, Source, bad_key, open_file, refuse_changed
from noisebook.errors import ImageError, first_line
from noisebook.images.io import read_image

PNG, ORIENTATION = b"\x89PNG\r\n\x1a\n", 0x0112
TINY = 16  # pixels per side; smaller images get a remark
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".avif": "AVIF",
}


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 [H, W, C], the upright picture's own height and width, and what was done that is worth a remark.

    exif  broken, and ignored · rotated  by its EXIF · bits16  scaled to 8 · gray  in a codec of colours · cmyk, alpha
    converted, over white · animated  its first frame only · wrong_extension · tiny  a side below 16 pixels
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
    if item.size >= 0 and (item.start < 0 or item.start + item.size > file.size):
        return Failure("unreadable", "the plan has it where its file ends")
    try:
        refuse_changed(file)  # before: to open a pipe in its place would wait for ever
        with open_file(file) as f:
            f.seek(item.start)
            data = f.read(item.size) if item.size >= 0 else f.read()
        if file.place is not None and file.place.local:  # it may have changed meanwhile; an object store gives one version
            refuse_changed(file)
    except Changed as error:
        return Failure("changed", str(error))
    except FileNotFoundError:
        return Failure("missing", "the file is gone")
    except OSError as error:
        return Failure("unreadable", error.strerror or str(error) or type(error).__name__)
    wanted = item.size if item.size >= 0 else file.size
    return data if len(data) == wanted else Failure("changed", f"{len(data)} bytes where the plan has {wanted}")


def decode(data: bytes, name: str, channels: int, resize: int = 0) -> Picture | Failure:
    """A picture of `channels` channels; with `resize` its shorter side is scaled to that many pixels (bicubic,
    antialiased), and the square in the middle kept."""
    if not data:
        return Failure("empty", "no bytes")
    try:
        remarks = _look(data, name, channels)
        pixels = read_image(io.BytesIO(data), channels)
    except ImageError as error:
        cause = error.__cause__
        if isinstance(cause, UnidentifiedImageError):
            return Failure("not_an_image", str(error))
        bomb = isinstance(cause, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        return Failure("too_large" if bomb else "damaged", str(error))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Failure("too_large", "more pixels than Pillow takes for safe")
    except UnidentifiedImageError:
        return Failure("not_an_image", "not an image that Pillow can read")
    except Exception as error:  # Pillow's plug-ins raise what they like on damaged headers
        return Failure("damaged", f"the file is damaged: {first_line(error)}")
    height, width = pixels.shape[:2]
    return Picture(_square(pixels, resize) if resize else pixels, height, width, remarks)


def _look(data: bytes, name: str, channels: int) -> tuple[str, ...]:
    """Remarks, from the header only. Raises ImageError for a PNG whose checksums are wrong."""
    remarks = []
    if data.startswith(PNG):
        _check_png(data)
    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")
        try:
            image.getexif().get_ifd(0x8769)
            if "exif" in image.info and not image.getexif():
                remarks.append("exif")
            if image.getexif().get(ORIENTATION, 1) in range(2, 9):
                remarks.append("rotated")
        except Exception:
            remarks.append("exif")
        if image.mode.startswith(("I", "F")):
            remarks.append("bits16")
        if channels == 3 and image.mode in ("1", "L", "LA"):
            remarks.append("gray")
        if image.mode == "CMYK":
            remarks.append("cmyk")
        if "A" in image.getbands() or "transparency" in image.info:
            remarks.append("alpha")
        if getattr(image, "n_frames", 1) > 1:
            remarks.append("animated")
        wanted = FORMATS.get(posixpath.splitext(name.lower())[1])
        if wanted and image.format not in (wanted, "MPO" if wanted == "JPEG" else wanted):
            remarks.append("wrong_extension")
        if min(image.size) < TINY:
            remarks.append("tiny")
        return tuple(remarks)


def _check_png(data: bytes) -> None:
    """Raises ImageError for a critical chunk with a wrong CRC: Pillow does not check those of the pixels."""
    at = len(PNG)
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + size
        if (
            kind[:1].isupper()
            and end + 4 <= len(data)
            and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4])
        ):
            raise ImageError(f"the file is damaged: wrong CRC in chunk {kind.decode('latin-1')!r}")
        if kind == b"IEND":
            return
        at = end + 4


def _square(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    out = np.asarray(image.crop((left, top, left + side, top + side)))
    return out[:, :, None] if out.ndim == 2 else out


@dataclass(frozen=True)
class Request:
    """What a worker decodes: the item, its file or its bytes (or why there are none), and how."""

    item: Item
    file: File
    data: bytes | Failure | None
    channels: int
    resize: int


class Requests(Sized, Iterable[Request]):
    """A request for each of some items. They are made one by one, as they are asked for: their bytes may be many."""

    def __init__(self, source: Source, items: Sequence[Item], channels: int, resize: int):
        self.source, self.items, self.channels, self.resize = source, items, channels, resize

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Request]:
        files = self.source.files
        for item, data in zip(self.items, self.source.image_bytes(self.items), strict=True):
            yield Request(item, files[item.file], data, self.channels, self.resize)


def requests_for(source: Source, items: Sequence[Item], channels: int, resize: int) -> Requests:
    """A request for each of these items."""
    return Requests(source, items, channels, resize)


def serve(requests: Iterable[Request]) -> list[Picture | Failure]:
    """What a worker answers: a picture or a failure for each request."""
    return [_answer(request) for request in requests]


def _answer(request: Request) -> Picture | Failure:
    if problem := request.item.problem or bad_key(request.item.key):  # a plan from elsewhere does not say so
        code, _, message = problem.partition(": ")
        return Failure(code, message)
    data = read_bytes(request.file, request.item) if request.data is None else request.data
    if isinstance(data, Failure):
        return data
    return decode(data, request.item.key + request.item.ending, request.channels, request.resize)


def watch_parent() -> None:
    """Ends this worker when the process that started it is gone, also when that was killed."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
