"""What every backbone around another backbone is built on: it does all that the inner one does."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.backbones.grid import Grid


def same(fingerprint: str) -> str:
    """That of a wrapper which is the same model."""
    return fingerprint


class Wrapper(Backbone):
    """A backbone around another one, `inner`, which it is like in all that a subclass does not change.

    Its description is a copy of inner's, with the fields in `changes` replaced. A function in place of a fingerprint makes
    it of inner's, and none of none: then it answers to earlier fingerprints as inner does. Every method and property of
    `Backbone` is passed on to `inner`: a subclass overrides only what it does otherwise. One that overrides `denoise` thinks
    of `denoise_each`, too. Only `device` is not passed on: it is read off all weights.
    """

    def __init__(self, inner: Backbone, **changes: Any):
        super().__init__()
        self.inner = inner
        made: Any = changes.get("fingerprint", same)
        self._derive: Callable[[str], str] | None = None if isinstance(made, str) else made
        if self._derive is not None:
            changes["fingerprint"] = self._derive(inner.fingerprint) if inner.fingerprint else ""  # none says no weights
        self.description = replace(inner.description, **changes)

    @property
    def version(self) -> int:
        return self._moves + self.inner.version  # the inner backbone may also be moved directly

    @property
    def native_size(self) -> tuple[int, int] | None:
        return self.inner.native_size

    @property
    def on_pixels(self) -> bool:
        own = type(self)  # one that overrides encode or decode has another state
        return own.encode is Wrapper.encode and own.decode is Wrapper.decode and self.inner.on_pixels

    @property
    def has_denoise_each(self) -> bool:
        return self.inner.has_denoise_each

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        return self.inner.denoise(y, sigma, cond)

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        return self.inner.denoise_each(y, sigma)

    def earlier_fingerprints(self) -> tuple[str, ...]:
        if self._derive is None or self._derive(self.inner.fingerprint) != self.fingerprint:
            return super().earlier_fingerprints()  # of a fingerprint of its own
        return tuple(map(self._derive, self.inner.earlier_fingerprints()))

    @property
    def auto_bfloat16(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.auto_bfloat16

    @property
    def acceleration(self) -> Mapping[str, Any]:  # type: ignore[override]
        return self.inner.acceleration

    @property
    def accelerated_to(self) -> str:
        return self.inner.accelerated_to

    @property
    def computes_in(self) -> str:
        return self.inner.computes_in

    def accelerate(
        self, dtype: torch.dtype | str = torch.float32, channels_last: bool = False, compile: bool = False
    ) -> Backbone:
        self.inner.accelerate(dtype, channels_last, compile)
        return self

    def round_sigma(self, sigma: float) -> float:
        return self.inner.round_sigma(sigma)

    def own_grid(self) -> Grid | None:
        return self.inner.own_grid()

    def padded(self, height: int, width: int) -> tuple[int, int]:
        return self.inner.padded(height, width)

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.inner.state_shape(height, width)

    def encode_condition(self, images: Tensor) -> Tensor:
        return self.inner.encode_condition(images)

    def condition(self, tokens: Tensor, height: int, width: int) -> Any:
        return self.inner.condition(tokens, height, width)

    def guided(self, cond: Any) -> Any:
        return self.inner.guided(cond)

    def encode(self, images: Tensor) -> Tensor:
        return self.inner.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        return self.inner.decode(x0)
