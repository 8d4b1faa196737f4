"""What `Codec.encode` is given, as tensors [B, C, H, W]: tensors, arrays, pictures of Pillow's, and lists of them."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from noisebook.codec.checks import NO_NUMBERS, check_images
from noisebook.errors import ImageError, printable

if TYPE_CHECKING:
    from PIL import Image

    Pictures = Tensor | np.ndarray | Image.Image  # what becomes one batch

Range = tuple[float, float]  # the values that are black and white
PictureReader = Callable[[Any, int], np.ndarray]  # (a picture of Pillow's, channels) -> uint8 [H, W, C]

TOGETHER = 1 << 20  # pixels of a list's images that are coded in one batch, unless one image has more


def batch_of(images: Any, channels: int, read: PictureReader | None) -> Tensor:
    """One batch, uint8 or float32 [B, C, H, W], where it was. Raises ImageError for what is none."""
    if isinstance(images, Tensor):
        return check_images(images, channels, images.device)
    if isinstance(images, np.ndarray):
        return _of_array(images, channels)
    if type(images).__module__.partition(".")[0] == "PIL":
        if read is None:
            raise ImageError(
                "this codec was not made by noisebook.load, and reads no PIL image: noisebook.images.io.read_image(path) "
                "makes an array of a file, which it takes"
            )
        return _of_array(read(images, channels), channels)
    raise ImageError(
        f"images must be a torch tensor [B, {channels}, H, W], a numpy array [H, W, {channels}] or [B, H, W, {channels}], a "
        f"PIL image, or a list of them, not {printable(type(images).__name__, 60)}"
    )


def _of_array(array: np.ndarray, channels: int) -> Tensor:
    grey = channels == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 1))
    batch = array[..., None] if grey else array  # [H, W] or [B, H, W]
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or batch.shape[-1] != channels:
        hint = ": torch.from_numpy(array) is for [B, C, H, W]" if batch.ndim == 4 and batch.shape[1] == channels else ""
        plain = "[H, W], [B, H, W], " if channels == 1 else ""
        raise ImageError(
            f"a numpy array of images is {plain}[H, W, {channels}] or [B, H, W, {channels}] for this codec, not "
            f"{list(array.shape)}{hint}"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ImageError(f"images must be uint8, or float in [-1, 1], not {array.dtype}")
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    batch = torch.from_numpy(np.array(batch.transpose(0, 3, 1, 2), dtype=dtype, order="C"))  # a copy: it may be read-only
    return check_images(batch, channels, batch.device)


def batches_of(items: Sequence[Any], channels: int, read: PictureReader | None) -> list[Tensor]:
    """What each of a list's items is as a batch; a tensor may be a single image [C, H, W]. Raises ImageError for a bad one,
    with its number, and for an empty list."""
    if not items:
        raise ImageError("an empty list of images")
    batches = []
    for number, item in enumerate(items):
        try:
            single = isinstance(item, Tensor) and item.ndim == 3
            batches.append(batch_of(item[None] if single else item, channels, read))
        except ImageError as error:
            raise ImageError(f"image {number} of the list: {error}") from error
    return batches


def in_groups(batches: Sequence[Tensor]) -> list[list[int]]:
    """Which of the batches are coded together: those of one size, type and device, in order, up to TOGETHER pixels."""
    groups: list[list[int]] = []
    open_group: dict[Any, tuple[list[int], int]] = {}
    for i, batch in enumerate(batches):
        kind, pixels = (batch.shape[2:], batch.dtype, batch.device), len(batch) * math.prod(batch.shape[2:])
        group, taken = open_group.get(kind, ([], TOGETHER))
        if taken + pixels > TOGETHER:
            group, taken = [], 0
            groups.append(group)
        group.append(i)
        open_group[kind] = (group, taken + pixels)
    return groups


def in_range(batches: Sequence[Tensor], span: Range | None) -> list[Tensor]:
    """The batches, of which floats are in [-1, 1]; `span`: the values of theirs that are black and white. Without it floats
    are unchanged, unless none of them is negative: then they look like another range. Raises ImageError."""
    floats = [batch for batch in batches if batch.dtype != torch.uint8]
    if span is None:
        if floats and all(batch.min() >= 0 for batch in floats):
            high = 1 if all(batch.max() <= 1.001 for batch in floats) else 255
            raise ImageError(
                f"no value of these float images is negative: they look like [0, {high}], and floats are taken in [-1, 1]: "
                f"give range=(0, {high}) if black is 0 and white is {high}, range=(-1, 1) if black is -1 and nothing is dark"
            )
        return list(batches)
    low, high = _checked(span)
    if not floats:
        raise ImageError("range is for images of floats: uint8 images are 0 ... 255 already, so leave it out")
    if (low, high) == (-1, 1):
        return list(batches)
    return [batch if batch.dtype == torch.uint8 else _scaled(batch, low, high) for batch in batches]


def out_of_range(images: Tensor) -> str:
    """Of float images that `encode` refused: which values they have, and what to do."""
    if not torch.isfinite(images).all():
        return NO_NUMBERS
    least, most = (float(value) for value in images.aminmax())
    return (
        f"float images are taken in [-1, 1], and these are from {least:.4g} to {most:.4g}: scale them, or give "
        "range=(black, white), the values that are black and white in them"
    )


def _checked(span: Any) -> Range:
    try:
        low, high = map(float, span)
    except (TypeError, ValueError) as error:
        raise ImageError("range is the two values of floats that are black and white: range=(0, 1)") from error
    if not -math.inf < low < high < math.inf:
        raise ImageError(f"range is two finite values, black below white, as (0, 1), not ({low:g}, {high:g})")
    return low, high


def _scaled(batch: Tensor, low: float, high: float) -> Tensor:
    slack = 0.0005 * (high - low)
    least, most = (float(value) for value in batch.aminmax())
    if least < low - slack or most > high + slack:
        raise ImageError(f"float images from {least:g} to {most:g} are not in the range ({low:g}, {high:g}) that was given")
    return (batch - low) * (2 / (high - low)) - 1


__all__ = ["PictureReader", "Range", "batch_of", "batches_of", "in_groups", "in_range", "out_of_range"]
