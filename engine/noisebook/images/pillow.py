"""A picture that is an image of Pillow's already, to pixels as a file of it would be read."""

import contextlib
import io

import numpy as np
from PIL import Image

from noisebook.errors import ImageError, first_line, printable
from noisebook.images.pixels import ORIENTATION
from noisebook.images.reading import FORMATS, read_image
from noisebook.runtime.limits import DEFAULT, Limits, too_much

AS_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes of Pillow that a PNG holds unchanged
AS_TIFF = ("I", "F", "CMYK", "YCbCr", "LAB")
PLAIN = {"L": 1, "RGB": 3}  # modes whose numbers are pixels, and their channels


def pixels_of_pil(image: Image.Image, channels: int = 3, limits: Limits = DEFAULT) -> np.ndarray:
    """uint8 [H, W, C]: upright, in sRGB, what is transparent over white, scaled to 8 bits, as `read_image` of a file. Raises
    ImageError as it does."""
    buffer = _saved(image, limits, channels)
    return np.atleast_3d(np.asarray(image)) if buffer is None else read_image(buffer, channels, limits)


def _saved(image: Image.Image, limits: Limits, channels: int) -> io.BytesIO | None:
    """The image as a file; None where its numbers are those that the file would be read to. It may not be decoded yet: then
    it is held against formats and limits before."""
    if image.format is not None and image.format not in FORMATS:
        raise ImageError(f"a picture of the format {printable(image.format, 20)}, which noisebook does not read")
    width, height = image.size
    if refusal := too_much(f"{height} x {width} pixels are", height * width, limits, "pixels"):
        raise ImageError(refusal)
    buffer, options = io.BytesIO(), {}
    try:
        image.load()
        with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels
            exif = image.getexif()
            options = {"exif": exif} if exif.get(ORIENTATION, 1) != 1 else {}
        if profile := image.info.get("icc_profile"):  # without it, the numbers would be taken for sRGB
            options["icc_profile"] = profile
        if PLAIN.get(image.mode) == channels and not options and "transparency" not in image.info:
            return None
        if image.mode not in AS_PNG + AS_TIFF:
            image = image.convert(
                {"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode, "I" if "I" in image.mode else "RGB")
            )
        if image.mode == "I" and _is_of_16_bits(image):
            image = image.convert("I;16")
        image.save(buffer, "PNG" if image.mode in AS_PNG else "TIFF", **options)
    except Exception as error:  # Pillow's plug-ins raise what they like on damaged files
        raise ImageError(f"cannot be read: {first_line(error)}") from error
    buffer.seek(0)
    return buffer


def _is_of_16_bits(image: Image.Image) -> bool:
    values = np.asarray(image)
    return bool(values.min() >= 0 and values.max() < 1 << 16)
