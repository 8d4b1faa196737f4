"""Adapter of latent models (Rombach et al. 2022): any other backbone, on the codes of an autoencoder."""

from typing import Protocol

from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.errors import BackboneError


class EncodesAndDecodes(Protocol):
    """A `torch.nn.Module` that has these two."""

    def encode(self, images: Tensor, /) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> z [B, c, H / factor, W / factor], the same z each time."""
        ...

    def decode(self, z: Tensor, /) -> Tensor:
        """z -> images [B, channels, H, W], about in [-1, 1]."""
        ...


class Latent(Wrapper):
    """`inner` walks on the state (z - shift) * scale, z = autoencoder.encode(images); decoding is at the very end.

    The c channels of z are `inner.channels`; sizes are those of the images, and so are the pixels of a condition's token.
    The fingerprint is empty until the caller sets one, over inner's weights and the autoencoder's. Raises BackboneError
    where `autoencoder` lacks `encode` or `decode`.
    """

    def __init__(
        self,
        inner: Backbone,
        autoencoder: EncodesAndDecodes,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        factor: int = 8,
        channels: int = 3,
    ):
        if not all(callable(getattr(autoencoder, name, None)) for name in ("encode", "decode")):
            raise BackboneError(f"an autoencoder has encode(images) and decode(z); {type(autoencoder).__name__} has not")
        size = inner.size and (inner.size[0] * factor, inner.size[1] * factor)
        super().__init__(inner, channels=channels, multiple=inner.multiple * factor, size=size, fingerprint="")
        self.autoencoder = autoencoder
        self.scale, self.shift, self.factor = scale, shift, factor

    @property
    def native_size(self) -> tuple[int, int] | None:
        """The (height, width), in pixels, that the inner backbone was made for, if it was made for one."""
        size = self.inner.native_size
        return size and (size[0] * self.factor, size[1] * self.factor)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size, in pixels, that holds such an image. Raises ImageError where none does."""
        if self.size is not None:
            Backbone.padded(self, height, width)  # refuses what is too large with a size in pixels, not in codes
        h, w = self.inner.padded(-(-height // self.factor), -(-width // self.factor))
        return h * self.factor, w * self.factor

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latent state of an image of that (already padded) size in pixels."""
        return self.inner.state_shape(height // self.factor, width // self.factor)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> the state [B, c, h, w]. Raises BackboneError on another shape of z."""
        z = self.autoencoder.encode(images)
        shape = [self.inner.channels, *(n // self.factor for n in images.shape[2:])]
        if list(z.shape[1:]) != shape:
            raise BackboneError(
                f"the autoencoder of {self.name!r} gives {list(z.shape[1:])} where its inner backbone takes "
                f"{shape}: check factor and channels"
            )
        return self.inner.encode((z - self.shift) * self.scale)

    def decode(self, x0: Tensor) -> Tensor:
        """The state [B, c, h, w] -> images [B, channels, H, W], about in [-1, 1]."""
        return self.autoencoder.decode(self.inner.decode(x0) / self.scale + self.shift)

    # `accelerate` is the inner backbone's: the autoencoder, called once per image, stays float32
