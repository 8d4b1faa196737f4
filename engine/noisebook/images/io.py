"""Pictures: reading them from files, and PNG bytes of arrays."""

import contextlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from noisebook.errors import ImageError, NoisebookError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif")
SAMPLES = ("astronaut", "cat", "coffee")  # photographs that scikit-image carries: NASA, CC0, CC0


def read_image(path: str | Path | io.BytesIO, channels: int = 3) -> np.ndarray:
    """The picture as uint8 [H, W, C], upright (EXIF), transparency over white, 16 bits scaled to 8, first frame.

    Raises ImageError for anything that is not a readable picture, and for decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(path) as image:
                image.load()
                return _to_uint8(image, channels)
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("more pixels than Pillow takes for safe; split the image") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except (ValueError, SyntaxError, IndexError, TypeError, EOFError, OverflowError, MemoryError) as error:
        raise ImageError(f"the file is damaged: {str(error) or type(error).__name__}") from error


def _to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels; Pillow raises many types here
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if image.mode != "F":
            values = values / 257
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    out = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return out if channels == 3 else out[:, :, None]


def sample(name: str) -> np.ndarray:
    """One of `SAMPLES`, uint8 [H, W, 3]."""
    from skimage import data

    return getattr(data, name)()


def find_files(inputs: Iterable[str | Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files named, and all with these suffixes in the folders named, by name. Raises NoisebookError for a folder
    without any (ImageError where pictures are looked for)."""
    found: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            inside = sorted(p for p in entry.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not inside:
                kind, what = (ImageError, "pictures") if suffixes is SUFFIXES else (NoisebookError, "files")
                raise kind(f"{entry}: no {what} in this folder ({', '.join(suffixes)})")
            found += inside
        else:
            found.append(entry)
    return found


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, C] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
