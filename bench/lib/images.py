"""Pictures that experiments make, and files of them."""

import argparse
import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.lib import record
from noisebook.images.io import png_bytes, read_image

PRESETS = ("photo", "photo-low", "photo-high")  # those that the README shows


def kodak(names: Collection[str] | None = None, count: int | None = None, crop: int = 0) -> dict[str, np.ndarray]:
    """Name -> uint8 [H, W, 3] of the Kodak pictures: of these names, the first `count`, squares of `crop` pixels from the
    middle unless it is 0. SystemExit for a name that is not there."""
    paths = sorted((record.DATA / "kodak").iterdir())
    if lost := set(names or ()) - {path.stem for path in paths}:
        raise SystemExit(f"no picture {', '.join(sorted(lost))} in {record.DATA / 'kodak'}")
    images = {path.stem: read_image(path) for path in paths[:count] if names is None or path.stem in names}
    for name, pixels in images.items() if crop else ():
        top, left = ((side - crop) // 2 for side in pixels.shape[:2])
        images[name] = pixels[top : top + crop, left : left + crop]
    return images


def add_crop(parser: argparse.ArgumentParser, name: str) -> None:
    """--out, which is `name`.json among the results, and --crop, for a dry run elsewhere: see `refuse_dry_result`."""
    parser.add_argument("--out", type=Path, default=record.RESULTS / f"{name}.json", help="the result file")
    parser.add_argument("--crop", type=int, default=0, help="squares of that side only: a dry run, with --out")


def refuse_dry_result(args: argparse.Namespace) -> None:
    """SystemExit where a dry run would be written among the results."""
    if args.crop and args.out.parent == record.RESULTS:
        raise SystemExit("--crop is a dry run: give it an --out elsewhere")


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
