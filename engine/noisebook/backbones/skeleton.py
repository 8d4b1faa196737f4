"""Networks of a library, made without values of their own: no memory is taken, nothing is drawn at random, and the weights
that a file holds become the parameters themselves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from noisebook.backbones.checkpoint import check_parameters


class EmptyOnMeta(TorchFunctionMode):
    """Inside, a tensor that nobody has filled yet has no memory; those that a constructor computes have their values.

    Parameters are made empty and then drawn at random, which on `meta` does nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return func(*args, **({**given, "device": "meta"} if func is torch.empty else given))


#: ways to make a network, the fastest first; the last one is the library's own
WAYS: tuple[Callable[[], Any], ...] = (lambda: torch.device("meta"), EmptyOnMeta, nullcontext)


def skeleton(build: Callable[[], nn.Module], stored: Mapping[str, Tensor]) -> nn.Module:
    """The network that `build` makes. Its parameters have no values: `load_state_dict(..., assign=True)` gives it those of
    a file, where `stored` lie. What its constructor computes besides is there.

    Raises ValueError for a network far larger than `stored`, before it takes memory."""
    for number, way in enumerate(WAYS):
        with way():
            network = build()
        if number == 0:
            check_parameters(network, stored)
        if not any(tensor.is_meta for tensor in computed(network)):
            break
    return network


def computed(network: nn.Module) -> Iterator[Tensor]:
    """The tensors of a network that are in no file: its constructor makes their values."""
    saved = network.state_dict(keep_vars=True)
    for prefix, module in network.named_modules():
        start = f"{prefix}." if prefix else ""
        yield from (t for name, t in module._buffers.items() if t is not None and start + name not in saved)
        for value in vars(module).values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple):
                yield from (t for t in value if isinstance(t, Tensor))
