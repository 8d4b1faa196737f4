"""Codecs and pictures with which `noisebook tokenize` is timed, and files of these pictures."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.lib.images import smooth
from bench.lib.record import DATA
from noisebook.images.archive import load_npz_images

FLOW = {
    "backbone": "cifar10-flow",
    "steps": 8,
    "budget": 4,
    "budget_last": 4,
    "vocab_size": 4096,
    "scale_pixels": 0,
    "start_budget": 0,
    "dtype": "float32",
}
LOW = {"preset": "photo-low", "dtype": "float32"}
COD = {"backbone": "cifar10-cod", "condition": "only", "dtype": "float32"}
CASES: list[dict[str, Any]] = [  # name, codec, input, format and side of the pictures, how many on a CPU, batch there
    {
        "name": "CIFAR-10, `cifar10-flow`, 8 calls",
        "codec": FLOW,
        "input": "parquet",
        "format": "PNG",
        "side": 32,
        "images": 256,
        "batch": 32,
    },
    {
        "name": "photographs 256 x 256, `photo-low`",
        "codec": LOW,
        "input": "folder",
        "format": "PNG",
        "side": 256,
        "images": 24,
        "batch": 4,
    },
    {
        "name": "CIFAR-10, `cifar10-cod`, one pass of convolutions",
        "codec": COD,
        "input": "parquet",
        "format": "PNG",
        "side": 32,
        "images": 256,
        "batch": 64,
    },
]
JPEGS = {
    "name": "photographs 256 x 256, JPEG, `photo-low`",
    "codec": LOW,
    "format": "JPEG",
    "side": 256,
    "images": 2048,
    "batch": 32,
}
GPU_CASES: list[dict[str, Any]] = [  # the same on a GPU; `least`: what of the codec's own speed is to be reached
    {
        "name": "CIFAR-10, PNG, `cifar10-flow`, 8 calls",
        "codec": FLOW,
        "input": "folder",
        "format": "PNG",
        "side": 32,
        "images": 65536,
        "batch": 256,
        "least": 0.85,
    },
    {**JPEGS, "input": "folder", "least": 0.97},
    {**JPEGS, "input": "tar", "least": 0.95},
    {**JPEGS, "input": "parquet", "least": 0.9},
]
INPUTS = ("folder", "tar", "parquet")
FILES, GROUP = 8, 256  # tars, and rows of a row group
DISTINCT = 1000  # pictures; then they come again
SUFFIXES = {"PNG": "png", "JPEG": "jpg"}


def pictures(case: dict[str, Any], count: int) -> np.ndarray:
    """uint8 [N, H, W, 3], real ones where they are at hand."""
    side, path = case["side"], archive(case)
    if path is None:
        rng = np.random.default_rng(0)
        some = np.stack([smooth(rng, side, side) for _ in range(min(count, 256))])
    else:
        some = np.stack([x[:side, :side, :3] for x in load_npz_images(path, count)])
    return some[np.arange(count) % len(some)]


def archive(case: dict[str, Any]) -> Path | None:
    """Where real ones are: the data folder, or what `tools/carry.py` packed."""
    names = ("cifar10_train.npz", "cifar10.npz") if case["side"] == 32 else ("photos256.npz",)
    return next((DATA / name for name in names if (DATA / name).exists()), None)


# ---- files of them ------------------------------------------------------------------------------------------------------
def saved(image: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"quality": 90} if form == "JPEG" else {}))
    return buffer.getvalue()


def prepare(folder: Path, case: dict[str, Any], count: int, inputs: Sequence[str] = INPUTS) -> dict[str, Path]:
    """`count` pictures as each of these kinds of input, each in its own folder: the same ones in all."""
    data = [saved(image, case["format"]) for image in pictures(case, min(count, DISTINCT))]
    data = [data[i % len(data)] for i in range(count)]
    names = [f"{i:06d}.{SUFFIXES[case['format']]}" for i in range(count)]
    places = {kind: folder / kind for kind in inputs}
    for kind, place in places.items():
        place.mkdir(parents=True)
        WRITERS[kind](place, names, data)
    return places


def write_folder(place: Path, names: list[str], data: list[bytes]) -> None:
    for name, content in zip(names, data, strict=True):
        (place / name).write_bytes(content)


def write_tars(place: Path, names: list[str], data: list[bytes]) -> None:
    for k in range(FILES):
        with tarfile.open(place / f"{k}.tar", "w") as tar:
            for name, content in zip(names[k::FILES], data[k::FILES], strict=True):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(place: Path, names: list[str], data: list[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": content, "path": name} for name, content in zip(names, data, strict=True)]
    pq.write_table(pa.table({"image": rows}), place / "in.parquet", row_group_size=GROUP)


WRITERS: dict[str, Callable[[Path, list[str], list[bytes]], None]] = {
    "folder": write_folder,
    "tar": write_tars,
    "parquet": write_parquet,
}
