"""Adapter of latent models (Rombach et al. 2022): any other backbone, on the codes of an autoencoder."""

from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.base import Backbone
from noisebook.errors import BackboneError


class Latent(Backbone):
    """`inner` walks on the state (z - shift) * scale, z = autoencoder.encode(images); decoding is at the very end.

    `autoencoder.encode` maps images [B, channels, H, W] in [-1, 1] to z [B, c, H / factor, W / factor], always the same z
    for the same image, `autoencoder.decode` back; c are `inner.channels`. Sizes are those of the images. Raises
    BackboneError where `autoencoder` lacks one of the two.
    """

    def __init__(
        self,
        inner: Backbone,
        autoencoder: nn.Module,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        factor: int = 8,
        channels: int = 3,
    ):
        super().__init__()
        if not all(callable(getattr(autoencoder, name, None)) for name in ("encode", "decode")):
            raise BackboneError(f"an autoencoder has encode(images) and decode(z); {type(autoencoder).__name__} has not")
        self.inner, self.autoencoder = inner, autoencoder
        self.scale, self.shift, self.factor, self.channels = scale, shift, factor, channels
        self.name, self.capturable, self.multiple = inner.name, inner.capturable, inner.multiple * factor
        self.size = inner.size and (inner.size[0] * factor, inner.size[1] * factor)
        self.pure_noise, self.condition_grid, self.unfingerprinted_options = (
            inner.pure_noise,
            inner.condition_grid,
            inner.unfingerprinted_options,
        )

    def round_sigma(self, sigma: float) -> float:
        """The inner backbone's level nearest to sigma."""
        return self.inner.round_sigma(sigma)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size, in pixels, that holds such an image. Raises ImageError where none does."""
        if self.size is not None:
            return super().padded(height, width)
        h, w = self.inner.padded(-(-height // self.factor), -(-width // self.factor))
        return h * self.factor, w * self.factor

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latent state of an image of that (already padded) size in pixels."""
        return self.inner.state_shape(height // self.factor, width // self.factor)

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, c, h, w], in the latent space, at sigma -> inner's x0_hat, same shape and dtype."""
        return self.inner.denoise(y, sigma, cond)

    def encode_condition(self, images: Tensor) -> Tensor:
        """The inner backbone's tokens of the images themselves."""
        return self.inner.encode_condition(images)

    def condition(self, tokens: Tensor, height: int, width: int) -> Any:
        """The inner backbone's; sizes are those of the images."""
        return self.inner.condition(tokens, height, width)

    def guided(self, cond: Any) -> Any:
        """The inner backbone's."""
        return self.inner.guided(cond)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> the state [B, c, h, w]. Raises BackboneError on another shape of z."""
        z, shape = self.autoencoder.encode(images), self.state_shape(*images.shape[2:])  # type: ignore[operator]
        if z.shape[1:] != shape:
            raise BackboneError(
                f"the autoencoder of {self.name!r} gives {list(z.shape[1:])} where its inner backbone takes "
                f"{list(shape)}: check factor and channels"
            )
        return (z - self.shift) * self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """The state [B, c, h, w] -> images [B, channels, H, W], about in [-1, 1]."""
        return self.autoencoder.decode(x0 / self.scale + self.shift)  # type: ignore[operator]

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        """The inner backbone's; the autoencoder, called once an image, stays float32."""
        self.inner.accelerate(dtype, channels_last, compile)
