"""Adapter of latent models (Rombach et al. 2022): any other backbone, on the codes of an autoencoder."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from noisebook.backbones.base import NETWORK_ONLY, Backbone, network_dtype
from noisebook.backbones.families.network import FAILS
from noisebook.backbones.nets.halves import Accelerated, compile_halves
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.backbones.wrappers.pieces import in_pieces
from noisebook.errors import BackboneError, NoisebookError, first_line


class EncodesAndDecodes(Protocol):
    """A `torch.nn.Module` that has these two. One with `needs_float32 = True` is never run in bfloat16."""

    def encode(self, images: Tensor, /) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> z [B, c, H / factor, W / factor], the same z each time."""
        ...

    def decode(self, z: Tensor, /) -> Tensor:
        """z -> images [B, channels, H, W], about in [-1, 1]."""
        ...


class Latent(Wrapper):
    """`inner` walks on the state (z - shift) * scale, z = autoencoder.encode(images); decoding is at the very end.

    The c channels of z are `inner.channels`; sizes are those of the images, and so are the pixels of a condition's token.
    The autoencoder works on a bounded number of pixels at a time, see `pieces.in_pieces`. The fingerprint is empty until the
    caller sets one, over inner's weights and the autoencoder's. Raises BackboneError where `autoencoder` lacks `encode` or
    `decode`.
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
        self.accelerated: Accelerated | None = None  # how the autoencoder computes, where `accelerate` has changed it
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
        return self.inner.encode((in_pieces(self._z_of, images, self.factor, False) - self.shift) * self.scale)

    def decode(self, x0: Tensor) -> Tensor:
        """The state [B, c, h, w] -> images [B, channels, H, W], about in [-1, 1]. Raises BackboneError on another shape."""
        return in_pieces(self._images_of, self.inner.decode(x0) / self.scale + self.shift, self.factor, True)

    def _z_of(self, images: Tensor) -> Tensor:
        shape = [self.inner.channels, *(n // self.factor for n in images.shape[2:])]
        return self._called("encode", images, shape, "its inner backbone takes")

    def _images_of(self, z: Tensor) -> Tensor:
        return self._called("decode", z, [self.channels, *(n * self.factor for n in z.shape[2:])], "its images are")

    def _called(self, verb: str, x: Tensor, shape: Sequence[int], wanted: str) -> Tensor:
        """The autoencoder's `verb`(x), computed as `accelerate` says, of that shape but for the batch."""
        how = self.accelerated
        half: Callable[[Tensor], Tensor] = getattr(self.autoencoder, verb)
        try:
            out = half(x if how is None else x.to(**how.takes(verb)))
        except NoisebookError:
            raise
        except FAILS as error:
            if how is None or how.dtype == x.dtype or x.is_cuda or "memory" in str(error):  # as of a network
                raise
            raise BackboneError(
                f"the autoencoder of {self.name!r} fails in bfloat16 ({type(error).__name__}: {first_line(error)}): "
                f"dtype={NETWORK_ONLY!r} leaves it in float32"
            ) from error
        if list(out.shape[1:]) != shape:
            raise BackboneError(
                f"the autoencoder of {self.name!r} gives {list(out.shape[1:])} where {wanted} {shape}: "
                "check factor and channels"
            )
        return out if how is None else out.to(x.dtype).contiguous()

    def accelerate(
        self, dtype: torch.dtype | str = torch.float32, channels_last: bool = False, compile: bool = False
    ) -> Backbone:
        """As every backbone's, and the autoencoder with it: that one stays float32 under the dtype "bfloat16-network", or
        where it says `needs_float32`. Images, z and the state stay float32. Warns of an autoencoder that is not compiled."""
        super().accelerate(dtype, channels_last, compile)
        module: Any = self.autoencoder
        stays = dtype == NETWORK_ONLY or getattr(module, "needs_float32", False)
        if self.accelerated is not None:
            self.accelerated.end()
        self.accelerated = Accelerated(module, torch.float32 if stays else network_dtype(dtype), channels_last)
        if compile and not compile_halves(module):
            message = f"the autoencoder of {self.name!r} is not compiled: it has no modules called encoder and decoder"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        self._moves += 1
        return self
