"""PSNR of each image of a row, kept for paired differences between rows that coded the same images."""

import base64
from typing import Any

import numpy as np
from torch import Tensor

from bench.lib import metrics

MISSING = "not measured yet"


def packed(psnr: Tensor) -> str:
    """PSNR of each image in hundredths of a dB, uint16 little-endian, base64."""
    return base64.b64encode((100 * psnr).round().numpy().astype("<u2").tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """PSNR of each image in dB, from what `packed` makes of it."""
    return np.frombuffer(base64.b64decode(text), "<u2") / 100.0


def paired(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) of the PSNR of row a minus that of row b over the same images."""
    return metrics.interval(unpacked(a["psnr_of_images"]) - unpacked(b["psnr_of_images"]))


def within(pair: tuple[float, float] | None, sign: str = "") -> str:
    """A mean with its interval, in dB."""
    return MISSING if pair is None else f"{pair[0]:{sign}.2f} ± {pair[1]:.2f} dB"
