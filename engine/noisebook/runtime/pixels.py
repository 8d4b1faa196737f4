"""8-bit pixels and the values that networks see: [0, 255] and [-1, 1]."""

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """uint8 [...] -> float32 in [-1, 1]; float tensors as they are."""
    return images.float().mul_(2 / 255).sub_(1) if images.dtype == torch.uint8 else images


def to_uint8(images: Tensor) -> Tensor:
    """float [...], about in [-1, 1] -> uint8, rounded to nearest."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte()
