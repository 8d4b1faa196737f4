"""The option `--roi`: a mask of where errors count more."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from noisebook.cli.inputs import refuse_unreadable
from noisebook.errors import ImageError
from noisebook.runtime.limits import Limits

if TYPE_CHECKING:
    import numpy as np

ROI_LEAST = 0.1  # what an error counts where a mask is black


def weights_of(args: argparse.Namespace, limits: Limits) -> "Callable[[np.ndarray], np.ndarray | None]":
    """pixels [H, W, C] -> weights [H, W] of the mask, or None. Raises ImageError for another size."""
    if args.roi is None:
        return lambda pixels: None
    from noisebook.images.io import read_image

    refuse_unreadable(args.roi, ImageError)
    mask = read_image(args.roi, 1, limits)[:, :, 0].astype("float32") / 255

    def weights(pixels: "np.ndarray") -> "np.ndarray":
        if mask.shape != pixels.shape[:2]:
            raise ImageError(
                f"the mask {args.roi} has {mask.shape} pixels, the image {pixels.shape[:2]}: they must be equal"
            )
        return ROI_LEAST + (1 - ROI_LEAST) * mask

    return weights
