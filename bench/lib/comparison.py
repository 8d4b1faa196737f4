"""The comparison of rules on the same backbones: its pictures, backbones and rates, and what finds a row of its results.

rivals.py says what each codec is. bench/quality/rate_distortion.py measures all rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib import priors, rivals
from bench.lib.record import DATA, RESULTS
from bench.lib.rows import PCA
from noisebook import backbones
from noisebook.codec.codec import Codec
from noisebook.codec.measure import measure
from noisebook.format import container
from noisebook.images.io import read_image
from noisebook.spec import curve as calibration

KODAK, CIFAR = "Kodak", "CIFAR-10"
RATES = {KODAK: (0.25, 0.05, 1.0, 0.1, 0.5), CIFAR: (1, 0.25, 4, 0.5, 2)}
NETWORKS = {KODAK: ("photo", "gaussian-prior"), CIFAR: ("cifar10-flow", "cifar10-edm", PCA)}
CODECS = [  # (codec, network calls), the most wanted first
    ("default", 25),
    ("Turbo-DDCM", 25),
    ("DiffC", 25),
    ("default", 8),
    ("Turbo-DDCM", 30),
    ("default", 61),
    ("Turbo-DDCM on ours", 25),
    ("DDCM", 25),
    ("default, 4 candidates", 8),
]
FILE = RESULTS / "rate_distortion.json"
DIMS = {KODAK: 3 * 512 * 768, CIFAR: 3 * 32 * 32}
CALIBRATION = 256  # training images that the closed form's curve is measured on


@dataclass(frozen=True)
class Row:
    data: str
    backbone: str
    codec: str
    bpp: float
    nfe: int

    @property
    def key(self) -> str:
        return f"{self.data}, {self.backbone}, {self.codec}, {self.nfe} calls, {self.bpp:g} bpp"


def plan() -> Iterator[Row]:
    for slow in (False, True):  # matching pursuit of photographs takes hours of a CPU, look-ahead four times as long
        for data, names in NETWORKS.items():
            for name in names:
                dear = ("DDCM", *rivals.CANDIDATES) if data == KODAK else ()
                some = [(codec, calls) for codec, calls in CODECS if (codec in dear) == slow]
                yield from (Row(data, name, codec, bpp, calls) for codec, calls in some for bpp in RATES[data])


def measured(found: dict[str, Any] | None) -> bool:
    """Whether a row of results holds figures, and not the reason why it has none."""
    return found is not None and "error" not in found


def scaled(found: dict[str, Any]) -> bool:
    """Whether a measured row's codec is the one of today: Turbo-DDCM on photographs had K = 2^14 once."""
    small = found["data"] == KODAK and found["codec"].startswith("Turbo-DDCM")
    return not small or found["spec"]["vocab_size"] >= 2 * rivals.atoms_of(DIMS[KODAK])


def payload_bits(codec: Codec, tokens: Tensor, size: tuple[int, int]) -> list[int]:
    """Bits of the payload of each image, whole bytes, as a file has them."""
    runs = codec.stream(*size).runs
    if codec.spec.rule == "poisson":
        return [8 * len(container.pack(row, runs)) for row in tokens.cpu().numpy()]
    return [8 * math.ceil(container.packed_bits(runs) / 8)] * len(tokens)


# ---- images and backbones -----------------------------------------------------------------------------------------------
Batches = tuple[list[str], list[Tensor]]  # names in order, uint8 [B, 3, H, W] of one size each


@cache
def kodak(count: int) -> Batches:
    sizes: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for path in sorted((DATA / "kodak").iterdir())[:count]:
        picture = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)
        sizes.setdefault(tuple(picture.shape), {})[path.stem] = picture
    return [name for some in sizes.values() for name in some], [torch.stack(list(b.values())) for b in sizes.values()]


@cache
def cifar(count: int) -> Batches:
    with np.load(DATA / "cifar10_test5k.npz") as data:
        images = torch.from_numpy(data["images"][:count]).permute(0, 3, 1, 2).contiguous()
    return [str(i) for i in range(len(images))], [images]


@cache
def backbone_of(name: str, device: str) -> backbones.Backbone:
    if name == PCA:
        return priors.pca().to(device)
    return backbones.load(name, device)


@cache
def curve_of(name: str) -> calibration.Curve:
    """The shipped curve; the closed form's is measured, or was and lies in the data folder."""
    if name in calibration.shipped_curves():
        return calibration.shipped_curves()[name]
    carried = DATA / f"{name}.curve.json"
    if carried.exists():
        curve = calibration.Curve.from_json(carried.read_text())
        return replace(curve, fingerprint=backbone_of(name, "cpu").fingerprint)  # float16 eigenvectors, see `carry`
    with np.load(DATA / "cifar10_train.npz") as data:
        images = torch.from_numpy(data["images"][-CALIBRATION:]).permute(0, 3, 1, 2)
    return measure(backbone_of(name, "cpu"), [images])
