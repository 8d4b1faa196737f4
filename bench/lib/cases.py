"""Codecs and pictures with which `noisebook tokenize` is timed."""

from pathlib import Path
from typing import Any

import numpy as np

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
COD = {"backbone": "cifar10-cod", "condition": "only", "dtype": "float32"}
CASES: list[dict[str, Any]] = [  # name, codec, input, images on a CPU and on a GPU, batch there, threads and workers
    {
        "name": "CIFAR-10, `cifar10-flow`, 8 calls",
        "codec": FLOW,
        "input": "parquet",
        "images": (256, 8192),
        "batch": (32, 256),
    },
    {
        "name": "photographs 256 x 256, `photo-low`",
        "codec": {"preset": "photo-low", "dtype": "float32"},
        "input": "pictures",
        "images": (24, 512),
        "batch": (4, 32),
    },
    {
        "name": "CIFAR-10, `cifar10-cod`, one pass of convolutions",
        "codec": COD,
        "input": "parquet",
        "images": (256, 32768),
        "batch": (64, 256),
    },
]


def pictures(case: dict[str, Any], count: int) -> np.ndarray:
    """uint8 [N, H, W, 3], real ones where they are at hand."""
    side, path = archive(case)
    if path is None:
        rng = np.random.default_rng(0)
        some = np.stack([smooth(rng, side, side) for _ in range(min(count, 256))])
    else:
        some = np.stack([x[:side, :side, :3] for x in load_npz_images(path, count)])
    return some[np.arange(count) % len(some)]


def archive(case: dict[str, Any]) -> tuple[int, Path | None]:
    """(side of the images, where real ones are): the data folder, or what `tools/carry.py` packed."""
    names = ("cifar10_train.npz", "cifar10.npz") if case["input"] == "parquet" else ("photos256.npz",)
    side = 32 if case["input"] == "parquet" else 256
    return side, next((DATA / name for name in names if (DATA / name).exists()), None)
