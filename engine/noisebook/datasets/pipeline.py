"""Tokens inside somebody else's pipeline: Ray Data's `map_batches`, Hugging Face `datasets.map`."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from noisebook.codec.load import load
from noisebook.datasets.table import largest_dtype
from noisebook.errors import ImageError, printable
from noisebook.images.io import FORMATS, read_image
from noisebook.runtime.limits import DEFAULT, Limits, too_much


class TokenizeBatch:
    """A callable: a batch of columns -> the same with `tokens` (unsigned [L] per image) in place of the images.

        datasets.map(TokenizeBatch("photo"), batched=True, batch_size=32, remove_columns="image")
        ray.data.map_batches(TokenizeBatch, fn_constructor_kwargs={"preset": "photo"}, batch_size=32, concurrency=2)

    preset, options   as of `noisebook.load`; the codec is made at the first call, in the process that works
    image             the column of images: uint8 arrays [H, W, C], PIL images, bytes, or {"bytes": ...}
    tokens            the column to make
    limits            of pictures: `pixels`

    Images of one size in a batch are coded together. Raises ImageError for one that cannot be read: what becomes of it is
    up to the pipeline, and so is resuming. For each image exactly once, and a ledger: `noisebook.datasets.tokenize`.
    """

    def __init__(
        self, preset: str = "photo", image: str = "image", tokens: str = "tokens", limits: Limits = DEFAULT, **options: Any
    ):
        self.preset, self.image, self.tokens, self.limits, self.options = preset, image, tokens, limits, options
        self._codec: Any = None

    def __getstate__(self) -> dict[str, Any]:  # a codec is made where it works
        return {**self.__dict__, "_codec": None}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._codec is None:
            self._codec = load(self.preset, **self.options)
        codec = self._codec
        pixels = [_pixels(value, codec.backbone.channels, self.limits) for value in batch[self.image]]
        tokens_of: dict[int, np.ndarray] = {}
        dtype = largest_dtype(codec.spec)
        for shape in dict.fromkeys(x.shape for x in pixels):
            rows = [i for i, x in enumerate(pixels) if x.shape == shape]
            images = torch.from_numpy(np.stack([pixels[i] for i in rows])).permute(0, 3, 1, 2)
            for i, tokens in zip(rows, codec.encode(images).cpu().numpy(), strict=True):
                tokens_of[i] = tokens.astype(dtype)
        rest = {name: column for name, column in batch.items() if name != self.image}
        return {**rest, self.tokens: _column([tokens_of[i] for i in range(len(pixels))])}


def _column(rows: list[np.ndarray]) -> Any:
    """[N, L] where all rows have L tokens, else the list."""
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else rows


def _pixels(value: Any, channels: int, limits: Limits) -> np.ndarray:
    """uint8 [H, W, C] of an image in any form that pipelines hold."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, (bytes, bytearray)):
        return read_image(io.BytesIO(value), channels, limits)
    if isinstance(value, Image.Image):
        return read_image(_saved(value, limits), channels, limits)
    pixels = np.asarray(value)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ImageError(f"an image is uint8 [H, W, C], bytes or a PIL image, not {pixels.dtype} {list(pixels.shape)}")
    return read_image(_png(pixels), channels, limits) if pixels.ndim == 2 or pixels.shape[2] != channels else pixels


def _saved(image: Image.Image, limits: Limits) -> io.BytesIO:
    """A picture of Pillow's as a file. It may not be decoded yet: then it is held against formats and limits before."""
    if image.format is not None and image.format not in FORMATS:
        raise ImageError(f"a picture of the format {printable(image.format, 20)}, which noisebook does not read")
    width, height = image.size
    if refusal := too_much(f"{height} x {width} pixels are", height * width, limits, "pixels"):
        raise ImageError(refusal)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if image.mode != "CMYK" else "TIFF")
    return buffer


def _png(pixels: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.ndim == 2 or pixels.shape[2] > 1 else pixels[:, :, 0]).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
