"""A backbone on a device that has no search, such as `mps` or `xpu`: states come from the host and go back there."""

from typing import Any

from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.runtime.devices import working_device


def hosted(backbone: Backbone) -> Backbone:
    """The same, as it is called from where a codec works: itself, unless that is not where its weights live."""
    return backbone if working_device(backbone.device) == backbone.device else Hosted(backbone)


class Hosted(Wrapper):
    """Takes and gives tensors on the host, and runs where its weights live: one copy each way per call. What `condition`
    gives, and `denoise` is handed again, stays there."""

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        there = self._there(y)
        return (self.inner(there, sigma) if cond is None else self.inner(there, sigma, cond)).cpu()

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        return self.inner.denoise_each(self._there(y), self._there(sigma)).cpu()

    def encode_condition(self, images: Tensor) -> Tensor:
        return self.inner.encode_condition(self._there(images)).cpu()

    def condition(self, tokens: Tensor, height: int, width: int) -> Any:
        return self.inner.condition(self._there(tokens), height, width)

    @property
    def on_pixels(self) -> bool:
        return self.inner.on_pixels

    def encode(self, images: Tensor) -> Tensor:
        return images if self.on_pixels else self.inner.encode(self._there(images)).cpu()

    def decode(self, x0: Tensor) -> Tensor:
        return x0 if self.on_pixels else self.inner.decode(self._there(x0)).cpu()


__all__ = ["Hosted", "hosted"]
