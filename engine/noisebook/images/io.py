"""Pictures: finding them and reading them, and PNG bytes of arrays."""

import io

import numpy as np
from PIL import Image

from noisebook.images.folders import SUFFIXES as SUFFIXES
from noisebook.images.folders import find_files as find_files
from noisebook.images.reading import FORMATS as FORMATS
from noisebook.images.reading import TooLarge as TooLarge
from noisebook.images.reading import opened as opened
from noisebook.images.reading import read_image as read_image
from noisebook.images.reading import read_picture as read_picture

SAMPLES = ("astronaut", "cat", "coffee")  # photographs that scikit-image carries: NASA, CC0, CC0


def sample(name: str) -> np.ndarray:
    """One of `SAMPLES`, uint8 [H, W, 3]."""
    from skimage import data

    return getattr(data, name)()


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, C] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
