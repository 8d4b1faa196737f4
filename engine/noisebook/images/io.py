"""Pictures: finding them and reading them, and PNG bytes of arrays."""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from noisebook.errors import ImageError, NoisebookError, printable
from noisebook.images.reading import FORMATS as FORMATS
from noisebook.images.reading import TooLarge as TooLarge
from noisebook.images.reading import opened as opened
from noisebook.images.reading import read_image as read_image
from noisebook.images.reading import read_picture as read_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif")
SAMPLES = ("astronaut", "cat", "coffee")  # photographs that scikit-image carries: NASA, CC0, CC0


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
