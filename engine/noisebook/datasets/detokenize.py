"""A tokenised data set back to pictures."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from noisebook.datasets.reader import TokenDataset
from noisebook.errors import CodecMismatchError, DatasetError
from noisebook.images.files import pixels_of
from noisebook.images.io import png_bytes
from noisebook.runtime.atomic import write_bytes

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec


def detokenize(
    data: TokenDataset,
    codec: "Codec",
    output: Path,
    batch_size: int = 32,
    first: int | None = None,
    steps: int | None = None,
    tell: Callable[[int], Any] = lambda _: None,
) -> dict[str, Any]:
    """Writes OUTPUT/KEY.png of the first `first` images (None: of all), batch by batch of one size. Files that are there
    are not written again, so that the same call goes on where it was stopped. `steps`: only the first steps of each.
    `tell` is called with the number of images after each batch. Returns {"written", "skipped"}.

    Raises CodecMismatchError for another codec, DatasetError for a key that leads out of the folder."""
    if codec.spec.hash != data.spec.hash:
        raise CodecMismatchError(f"the tokens are of codec {data.spec.hash.hex()}, not {codec.spec.hash.hex()}")
    counts = {"written": 0, "skipped": 0}
    for batch in _batches(data, len(data) if first is None else min(first, len(data)), batch_size, output, counts):
        for (path, _), pixels in zip(batch, decoded(codec, [row for _, row in batch], steps), strict=True):
            write_bytes(path, png_bytes(pixels))
        counts["written"] += len(batch)
        tell(len(batch))
    return counts


def decoded(codec: "Codec", rows: Sequence[dict[str, Any]], steps: int | None = None) -> np.ndarray:
    """Pictures uint8 [B, H, W, C] of rows of one size, decoded in all steps or only the first `steps`."""
    tokens = torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64))
    return pixels_of(codec.decode(tokens, (rows[0]["height"], rows[0]["width"]), steps))


def _batches(
    data: TokenDataset, count: int, size: int, output: Path, counts: dict[str, int]
) -> Iterator[list[tuple[Path, dict[str, Any]]]]:
    buckets: dict[tuple[int, int], list[tuple[Path, dict[str, Any]]]] = {}
    for index in range(count):
        row = data[index]
        path = _path(output, row["key"])
        if path.exists():
            counts["skipped"] += 1
            continue
        key = row["height"], row["width"]
        bucket = buckets.setdefault(key, [])
        bucket.append((path, row))
        if len(bucket) == size:
            yield buckets.pop(key)
    yield from buckets.values()


def _path(output: Path, key: str) -> Path:
    """Where an image goes: its key, whatever its ending was, as a PNG inside the folder."""
    name = PurePosixPath(key)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DatasetError(f"the key {key!r} leads out of the folder: the data set is not safe to unpack")
    return output / name.with_name(name.name + ".png")
