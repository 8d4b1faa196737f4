"""Pictures: reading them from files, and PNG bytes of arrays."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from noisebook.errors import ImageError, NoisebookError, printable
from noisebook.runtime.limits import DEFAULT, Limits, too_much

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif")
#: Pillow's names of the formats that are read, whatever a file is called. Others are not even looked at: Pillow hands an EPS
#: to Ghostscript, which is a program. Those that are known by their first bytes come first, TGA has none.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "ICO", "TGA")
SAMPLES = ("astronaut", "cat", "coffee")  # photographs that scikit-image carries: NASA, CC0, CC0
ORIENTATION = 0x0112  # of EXIF; 1: upright
STRIP = 1 << 20  # pixels that are converted at once


class TooLarge(Image.DecompressionBombError):
    """A picture has more pixels than may be read; the cause of the ImageError that callers see."""

    def __init__(self, height: int, width: int):
        super().__init__(f"{height} x {width}")
        self.height, self.width = height, width


def read_image(path: str | Path | io.BytesIO, channels: int = 3, limits: Limits = DEFAULT) -> np.ndarray:
    """The picture as uint8 [H, W, C], upright (EXIF), transparency over white, 16 bits scaled to 8, first frame.

    Raises ImageError for what is no readable picture of one of `FORMATS`, and for more than `limits.pixels`.
    """
    with opened(path, limits) as image:
        return to_pixels(image, channels)


@contextlib.contextmanager
def opened(path: str | Path | io.BytesIO, limits: Limits = DEFAULT, formats: tuple[str, ...] = FORMATS) -> Iterator[Any]:
    """A picture of Pillow's, its header read. `limits.pixels` takes the place of Pillow's own limit in the block, also for
    pictures inside of it (an icon), and for this thread only. What is raised in the block is an ImageError in the end."""
    token = _most.set(limits.pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(path, formats=_known(formats)) as image:
                _refuse_large(image.size)
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        names = ", ".join(name for name in formats if name not in ("MPO", "DIB"))
        raise ImageError(f"not a picture of a format that noisebook reads ({names})") from error
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
    finally:
        _most.reset(token)


def to_pixels(image: Any, channels: int) -> np.ndarray:
    """The pixels of a picture that is `opened`, see `read_image`. What is raised is for the block of `opened`."""
    image.load()
    _refuse_large(image.size)  # once more: some formats know it only now
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels; Pillow raises many types here
        if image.getexif().get(ORIENTATION, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
    width, height = image.size
    out = np.empty((height, width, channels), np.uint8)
    rows = max(1, STRIP // max(1, width))
    for top in range(0, height, rows):  # in strips: what lies between picture and pixels is not held for all of them
        bottom = min(height, top + rows)
        out[top:bottom] = _to_uint8(image.crop((0, top, width, bottom)), channels)
    return out


def _to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535).astype(np.int32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # v / 257, rounded: 257 is odd, nothing is halfway
    elif image.mode == "F":
        values = np.asarray(image, np.float64)
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    out = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return out if channels == 3 else out[:, :, None]


@cache
def _known(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of these formats that this Pillow reads by themselves: it makes an MPO of a JPEG, and AVIF may be missing."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def sample(name: str) -> np.ndarray:
    """One of `SAMPLES`, uint8 [H, W, 3]."""
    from skimage import data

    return getattr(data, name)()


def walk(root: str | Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of its folders, names of its files) of a folder and all below it, as `os.walk`. Links are followed,
    though not in circles. `onerror` is called for a folder that cannot be listed."""
    above = {os.fspath(root): {os.path.realpath(root)}}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        yield folder, list(folders), files
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in above[folder]:
                folders.remove(name)
            above[path] = above[folder] | {real}


def find_files(inputs: Iterable[str | Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files named, and all with these suffixes in the folders named, by name. Links are followed, though not in circles.
    What has the name of such a file but is none (a folder, a pipe, a link to nothing) is among them, so that its reader
    refuses it in words. Raises NoisebookError (ImageError where pictures are looked for) for a folder without any, and for
    one that cannot be listed: its files would be lost."""
    kind, what = (ImageError, "pictures") if suffixes is SUFFIXES else (NoisebookError, "files")

    def stop(error: OSError) -> None:
        raise kind(f"{printable(error.filename)}: cannot be listed: {error.strerror}") from error

    found: list[Path] = []
    for entry in map(Path, inputs):
        if not entry.is_dir():
            found.append(entry)
            continue
        inside = []
        for folder, folders, files in walk(entry, stop):
            inside += [Path(folder, name) for name in folders + files if name.lower().endswith(suffixes)]
        if not inside:
            raise kind(f"{printable(entry)}: no {what} in this folder ({', '.join(suffixes)})")
        found += sorted(inside)
    return found


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, C] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


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
