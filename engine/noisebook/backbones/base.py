"""What a backbone is: one function x0_hat = D(y, lam), the sizes it takes, and a fingerprint of its weights."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.errors import ImageError


class Backbone(nn.Module):
    """Base of all adapters. `y = x0 + lam * eps` in noise-to-signal coordinates, whatever the model's family uses inside.

    A subclass sets the attributes below and implements `denoise`; a latent one also `encode`, `decode`, `state_shape`.
    """

    name: str = "unnamed"  # what a codec's specification calls it
    channels: int = 3  # of the images: 3 (RGB) or 1 (grey)
    multiple: int = 1  # height and width of the images it takes are multiples of this
    size: tuple[int, int] | None = None  # the one (height, width) it takes; None: any
    fingerprint: str = ""  # SHA-256 over weights and config, see `fingerprint_of`

    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        """y [B, *state_shape] float32 at noise-to-signal ratio lam > 0 -> the prediction x0_hat, same shape and dtype."""
        raise NotImplementedError

    def forward(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        return self.denoise(y, lam, cond)

    def snap(self, lam: float) -> float:
        """The level nearest to lam that the model knows (discrete-time models); lam itself otherwise."""
        return lam

    @property
    def native_size(self) -> tuple[int, int] | None:
        """The (height, width) it was made for, if it was made for one."""
        return self.size

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest (height, width) it takes that holds such an image. Raises ImageError where none does."""
        if self.size is not None:
            if height > self.size[0] or width > self.size[1]:
                raise ImageError(f"backbone {self.name!r} takes {self.size} pixels only, not {(height, width)}: use Tiled")
            return self.size
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [C, h, w] of the diffusion state for an image of that (already padded) size."""
        return (self.channels, height, width)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] -> the state x0. The identity for pixel models."""
        return images

    def decode(self, x0: Tensor) -> Tensor:
        """The state x0 -> images [B, C, H, W] float32, about in [-1, 1]. The identity for pixel models."""
        return x0


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over the config's canonical JSON and the sorted (name, dtype, shape, bytes) of all tensors."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
