"""Batches of random crops for the trainers."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.errors import TrainingError
from noisebook.runtime.pixels import from_uint8


def least_side(images: list[np.ndarray]) -> int:
    """Of the largest square crop that all images have."""
    return min(min(image.shape[:2]) for image in images)


def check_sides(images: list[np.ndarray], sizes: tuple[int, ...]) -> None:
    """Raises TrainingError where an image is smaller than a crop."""
    if least_side(images) < max(sizes):
        raise TrainingError(f"an image is smaller than the crops of {max(sizes)} pixels: give --sizes")


class Crops:
    """Random square crops, half of them mirrored, of uint8 [H, W, C] images of any sizes.

    Raises ValueError where an image is smaller than a crop, see `sample`.
    """

    def __init__(self, images: list[np.ndarray]):
        self.images, self.side = images, least_side(images)
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


class CropsOnDevice:
    """The same with the images on a device, as bytes: a batch costs the host one random number."""

    def __init__(self, images: list[np.ndarray], device: str):
        self.device, self.side = device, least_side(images)
        self.bytes = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])).to(device)
        sizes = np.array([image.shape for image in images])
        self.begin = torch.from_numpy(np.cumsum([0, *sizes.prod(1)[:-1]])).to(device)
        self.height, self.width = (torch.from_numpy(sizes[:, axis].copy()).to(device) for axis in (0, 1))
        self.channels = int(sizes[0, 2])
        self.generator = torch.Generator(device)

    def sample(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        """float32 [count, C, size, size] in [-1, 1], on the device."""
        self.generator.manual_seed(int(rng.integers(1 << 62)))
        where = {"device": self.device, "generator": self.generator}
        picked = torch.randint(len(self.begin), (count,), **where)
        (y, x), mirrored = torch.rand(2, count, **where), torch.rand(count, **where) < 0.5
        width = self.width[picked]
        top, left = ((u * (n - size + 1)).long() for u, n in ((y, self.height[picked]), (x, width)))
        side, channel = torch.arange(size, device=self.device), torch.arange(self.channels, device=self.device)
        columns = torch.where(mirrored[:, None], side.flip(0), side) + left[:, None]  # [count, size]
        rows = (side + top[:, None]) * width[:, None]
        places = self.begin[picked, None, None] + (rows[:, :, None] + columns[:, None, :]) * self.channels
        return from_uint8(self.bytes[places[:, None] + channel[:, None, None]])


def batch(
    source: Crops | CropsOnDevice, pixels: int, sides: tuple[int, ...], shrink: bool, rng: np.random.Generator
) -> Tensor:
    """Crops of about that many pixels in all: float32 [B, C, n, n] in [-1, 1], n one of `sides`.

    `shrink`: half of the batches are of images at 1/2 to 1 of their size, as far as the smallest image has room."""
    size = sides[0] if len(sides) == 1 else sides[int(rng.integers(len(sides)))]
    count = max(1, pixels // size**2)
    if not shrink or rng.random() < 0.5:
        return source.sample(count, size, rng)
    side = min(source.side, round(size * math.exp2(rng.random())))
    larger = source.sample(count, side, rng)
    return F.interpolate(larger, (size, size), mode="bicubic", antialias=True).clamp_(-1, 1)
