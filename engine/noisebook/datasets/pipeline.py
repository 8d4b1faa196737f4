"""Tokens inside somebody else's pipeline: Ray Data's `map_batches`, Hugging Face `datasets.map`."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from noisebook.backbones import Backbone
from noisebook.codec.codec import Codec
from noisebook.datasets.table import largest_dtype
from noisebook.errors import ImageError, printable
from noisebook.images.io import read_image
from noisebook.images.load import load
from noisebook.images.pillow import pixels_of_pil
from noisebook.runtime.limits import DEFAULT, Limits, too_much

CHANNELS = range(1, 5)  # of an array: grey, grey and alpha, colours, colours and alpha


class TokenizeBatch:
    """A callable: a batch of columns -> the same with `tokens` (unsigned [L] per image) in place of the images.

        datasets.map(TokenizeBatch("photo"), batched=True, batch_size=32, remove_columns="image")
        ray.data.map_batches(TokenizeBatch, fn_constructor_kwargs={"preset": "photo"}, batch_size=32, concurrency=2)

    preset, options   as of `noisebook.load`, without its `tokens`; the codec is made at the first call, in the process that
                      works
    backbone          as of `noisebook.load`, or a function without arguments that makes a `Backbone` there. A `Backbone`
                      goes to other processes as its class pickles: one of a module; a function needs no weights to be sent
    image             the column of images: PIL images, bytes, {"bytes": ...}, or uint8 arrays or tensors, grey [H, W], or
                      with 1 to 4 channels (grey, grey and alpha, colours, colours and alpha), [H, W, C] or [C, H, W]. Where
                      both can be, an array is [H, W, C] and a tensor [C, H, W]. The column may be one array of them all.
    tokens            the column to make
    limits            of pictures: `pixels`

    Images of one size in a batch are coded together; a batch may have several sizes. Raises ImageError for one that cannot
    be read, with its place in the batch: what becomes of it is up to the pipeline, and so is resuming. For each image
    exactly once, and a ledger: `noisebook.datasets.tokenize`.
    """

    def __init__(
        self,
        preset: str | None = None,
        image: str = "image",
        tokens: str = "tokens",
        limits: Limits = DEFAULT,
        backbone: str | Backbone | Callable[[], Backbone] | None = None,
        **options: Any,
    ):
        self.preset, self.image, self.tokens, self.limits, self.options = preset, image, tokens, limits, options
        self.backbone = backbone
        self._codec: Codec | None = None

    def __getstate__(self) -> dict[str, Any]:  # a codec is made where it works
        return {**self.__dict__, "_codec": None}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        codec = self._codec = self._codec or codec_of(self.preset, self.backbone, self.options)
        pixels = [self._pixels(i, value, codec.backbone.channels) for i, value in enumerate(batch[self.image])]
        tokens_of: dict[int, np.ndarray] = {}
        dtype = largest_dtype(codec.spec)
        for shape in dict.fromkeys(x.shape for x in pixels):
            rows = [i for i, x in enumerate(pixels) if x.shape == shape]
            images = torch.from_numpy(np.stack([pixels[i] for i in rows])).permute(0, 3, 1, 2)
            for i, tokens in zip(rows, codec.encode(images).cpu().numpy(), strict=True):
                tokens_of[i] = tokens.astype(dtype)
        rest = {name: column for name, column in batch.items() if name != self.image}
        return {**rest, self.tokens: _column([tokens_of[i] for i in range(len(pixels))])}

    def _pixels(self, number: int, value: Any, channels: int) -> np.ndarray:
        try:
            return pixels_of(value, channels, self.limits)
        except ImageError as error:
            raise ImageError(f"image {number} of the batch: {error}") from error


def codec_of(
    preset: str | None, backbone: str | Backbone | Callable[[], Backbone] | None, options: Mapping[str, Any]
) -> Codec:
    """The codec of `noisebook.load`; of a backbone that is a function what it makes in this process."""
    given: Any = backbone
    made: Any = given() if callable(given) and not isinstance(given, nn.Module) else given
    return load(preset, backbone=made, **options)


def _column(rows: list[np.ndarray]) -> Any:
    """[N, L] where all rows have L tokens, else the list."""
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else rows


def pixels_of(value: Any, channels: int, limits: Limits) -> np.ndarray:
    """uint8 [H, W, C] of an image in any form that pipelines hold. Raises ImageError for other things and limits."""
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
        if value is None:
            only = f", only the path {printable(path, 100)}, which is not opened" if isinstance(path, str) else ""
            raise ImageError(f"it has no bytes{only}")
    if value is None:
        raise ImageError("there is none: it is null")
    if isinstance(value, bytes | bytearray | memoryview):
        return read_image(io.BytesIO(value), channels, limits)
    if isinstance(value, Image.Image):
        return pixels_of_pil(value, channels, limits)
    pixels = _array(value)
    if refusal := too_much(f"{pixels.shape[0]} x {pixels.shape[1]} pixels are", pixels[:, :, 0].size, limits, "pixels"):
        raise ImageError(refusal)
    return pixels if pixels.shape[2] == channels else read_image(_png(pixels), channels, limits)


def _array(value: Any) -> np.ndarray:
    """uint8 [H, W, C] of an array or tensor, see `TokenizeBatch`."""
    is_tensor = isinstance(value, Tensor)
    given: Any = value if is_tensor else np.asarray(value)
    if given.dtype not in (np.uint8, torch.uint8) or given.ndim not in (2, 3) or 0 in given.shape:
        what = f"{given.dtype} {list(given.shape)}"
        raise ImageError(
            f"an image is uint8 [H, W, C], [C, H, W] or [H, W], bytes or a PIL image, not {what}: scale values to 0 ... 255 "
            "and make them uint8"
        )
    pixels: np.ndarray = given.detach().cpu().numpy() if is_tensor else given
    if pixels.ndim == 2:
        return pixels[:, :, None]
    first, last = pixels.shape[0] in CHANNELS, pixels.shape[2] in CHANNELS
    if not first and not last:
        raise ImageError(f"neither the first nor the last of {list(pixels.shape)} is a number of channels, 1 to 4")
    return pixels.transpose(1, 2, 0) if first and (is_tensor or not last) else pixels


def _png(pixels: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0]).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
