"""What the adapters of foreign networks share: how a network is called, in which precision, and what it must return."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.base import Backbone
from noisebook.backbones.compiling import compile_network
from noisebook.errors import BackboneError, NoisebookError, first_line

FAILS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)  # of a network that its config does not fit


class NetworkBackbone(Backbone):
    """Base of the adapters that turn what a network predicts into x0_hat.

    `channels`, `size` (height, width) and `multiple` are as in `Backbone`, of the state that `net` works on.
    """

    auto_bfloat16 = ("cuda",)  # as the pipelines of such models; on a CPU nobody has measured what each one loses

    def __init__(self, net: nn.Module, *, channels: int = 3, size: tuple[int, int] | None = None, multiple: int = 1) -> None:
        super().__init__()
        self.net, self.channels, self.size, self.multiple = net, channels, size, multiple
        self.net_input: dict[str, Any] = {}  # dtype and memory format of the network's input, where they are not x's

    def call(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """net(x [B, C, H, W], ...) -> the first C channels of its output, in x's dtype (others: a learned variance).

        Raises BackboneError where the network fails on the CPU, or its output is no tensor [B, C or more, H, W].
        """
        try:
            out = self.net(x.to(**self.net_input) if self.net_input else x, *args, **kwargs)
        except NoisebookError:
            raise
        except FAILS as error:
            if x.is_cuda or "memory" in str(error):  # a recording decides for itself; memory is not the network's fault
                raise
            why = f"{type(error).__name__}: {first_line(error)}"
            raise BackboneError(f"the network of {self.name!r} fails on {list(x.shape)}: {why}") from error
        if not isinstance(out, Tensor):
            raise BackboneError(f"the network of {self.name!r} returned a {type(out).__name__}: return its tensor")
        (b, c, *pixels), shape = x.shape, list(out.shape)
        if len(shape) != x.ndim or [shape[0], *shape[2:]] != [b, *pixels] or shape[1] < c:
            raise BackboneError(
                f"the network of {self.name!r} returned {shape} for {list(x.shape)}: give the adapter the "
                "channels, size or multiple that it takes"
            )
        return out[:, :c].to(x.dtype)

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.net_input = {"dtype": dtype, "memory_format": layout}
        self.net.to(**self.net_input)
        if compile:
            compile_network(self.net)


def full(y: Tensor, value: float) -> Tensor:
    """[B], all `value`, of y's dtype and device: a time or a level as networks take them, made on the device."""
    return torch.full((len(y),), value, dtype=y.dtype, device=y.device)


def nearest(levels: Sequence[float], sigma: float) -> int:
    """Index of the level nearest to sigma > 0 in log distance; `levels` rise, the last may be infinite."""
    i = bisect_left(levels, sigma)
    if i == len(levels) or (i > 0 and levels[i] != sigma and sigma * sigma <= levels[i - 1] * levels[i]):
        return i - 1
    return i
