"""What tests share: a tiny backbone that needs no weights, and fresh random images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisebook.backbones import Backbone, fingerprint_of

ROOT = Path(__file__).resolve().parents[1]


class Shrink(Backbone):
    """The exact posterior mean for white Gaussian images of standard deviation .5: one multiplication."""

    name = "shrink"
    fingerprint = fingerprint_of({"kind": "shrink"}, {})

    def denoise(self, y: Tensor, lam: float, cond=None) -> Tensor:
        return y * (0.25 / (0.25 + lam * lam))


def random_images(rng: np.random.Generator, count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth random uint8 images [B, C, H, W]: low-frequency blobs with a little noise."""
    coarse = torch.from_numpy(rng.random((count, channels, 4, 4), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noise = torch.from_numpy(rng.random((count, channels, height, width), np.float32))
    return ((0.9 * smooth + 0.1 * noise) * 255).to(torch.uint8)
