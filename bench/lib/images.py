"""Pictures that experiments make, and files of them."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noisebook.images.io import png_bytes

PRESETS = ("photo", "photo-low", "photo-high")  # those that the README shows


def smooth(rng: np.random.Generator, height: int = 16, width: int = 16) -> np.ndarray:
    """A picture uint8 [H, W, 3] that compresses like one: blobs and a little noise."""
    blobs = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(blobs, np.int16) + rng.integers(-8, 9, (height, width, 3)), 0, 255).astype(np.uint8)


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """uint8 [N, H, W, 3] in the layout of Hugging Face: {bytes, path} and label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": png_bytes(image), "path": f"{i:05d}.png"} for i, image in enumerate(images)]
    pq.write_table(pa.table({"img": rows, "label": labels.tolist()}), path)


def centre_crops(path: Path, count: int, side: int = 256) -> Tensor:
    """Centre crops of the last `count` photographs of a photos archive: uint8 [count, 3, side, side]."""
    with np.load(path) as data:
        blob, offsets = data["webp"], data["offsets"]
    out = []
    for begin, end in zip(offsets[-count - 1 : -1], offsets[-count:], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(blob[begin:end].tobytes())).convert("RGB"))
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        out.append(torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1))
    return torch.stack(out)
