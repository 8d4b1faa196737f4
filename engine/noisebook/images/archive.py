"""Reads the image archives that the fits and the trainers take."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from noisebook.errors import ImageError


def load_npz_images(path: str | Path, count: int | None = None) -> list[np.ndarray]:
    """The first `count` images (None: all) of an .npz, each uint8 [H, W, C], values 0..255.

    The archive holds either `images`, uint8 [N, H, W, C] of one size, or `webp`, uint8 [bytes]: WebP files end to end,
    file k being `webp[offsets[k] : offsets[k + 1]]` with `offsets` integer [N + 1]; those come back as RGB, in any sizes.
    Raises ImageError where the file is no such archive, or an image in it cannot be decoded.
    """
    try:
        with np.load(path) as data:
            if "images" in data:
                images = data["images"][:count]
                if images.dtype != np.uint8 or images.ndim != 4:
                    raise ImageError(f"{path}: `images` must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}")
                return list(images)
            blob, offsets = data["webp"].tobytes(), data["offsets"].tolist()
        spans = list(zip(offsets, offsets[1:], strict=False))[:count]
        return [np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB")) for a, b in spans]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: no archive of images ({error}); it needs `images`, or `webp` and `offsets`") from error
