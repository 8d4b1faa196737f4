"""Batches of random crops for the trainers."""

import numpy as np
import torch
from torch import Tensor

from noisebook.runtime.pixels import from_uint8


class Crops:
    """Random square crops, half of them mirrored, of uint8 [H, W, C] images of any sizes.

    Raises ValueError where an image is smaller than a crop, see `sample`.
    """

    def __init__(self, images: list[np.ndarray]):
        self.images = images
        same = len({image.shape for image in images}) == 1
        self.stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if same else None  # [N, C, H, W] uint8

    def sample(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        """float32 [count, C, size, size] in [-1, 1]."""
        picked = rng.integers(len(self.images), size=count)
        mirrored = torch.from_numpy(rng.random(count) < 0.5)[:, None, None, None]
        if self.stack is not None and self.stack.shape[2:] == (size, size):
            x = self.stack[torch.from_numpy(picked)]
        else:
            x = torch.stack([torch.from_numpy(self._crop(self.images[i], size, rng)) for i in picked]).permute(0, 3, 1, 2)
        return from_uint8(torch.where(mirrored, x.flip(3), x))

    @staticmethod
    def _crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        y, x = (rng.integers(n - size + 1) for n in image.shape[:2])
        return image[y : y + size, x : x + size]
