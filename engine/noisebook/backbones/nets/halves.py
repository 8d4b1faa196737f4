"""The two halves of an autoencoder in another precision and layout, or compiled.

Under bfloat16 the convolution that reads the picture and the one that writes it stay float32. What bfloat16 rounds off a
picture's values there is no noise but shifts whole areas; with TAEF2 it was most of the loss. They are little of the work.
"""

from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.compiling import compile_network


class Accelerated:
    """Casts an autoencoder in place; its own `takes` says what the halves are to be given.

    The ends of modules called `encoder` and `decoder` stay float32, see above. One that has none is cast as it is."""

    def __init__(self, autoencoder: nn.Module, dtype: torch.dtype, channels_last: bool):
        self.dtype = dtype
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        encoders, decoders = (named(autoencoder, name) for name in ("encoder", "decoder"))
        first = [conv for half in encoders for conv in convolutions(half)[:1]] if dtype != torch.float32 else []
        last = [conv for half in decoders for conv in convolutions(half)[-1:]] if dtype != torch.float32 else []
        exact = [(conv, conv.state_dict()) for conv in (*first, *last)]
        how: dict[str, Any] = {"memory_format": self.layout}
        autoencoder.to(dtype=dtype, **how)
        for conv, weights in exact:
            conv.load_state_dict(weights, assign=True)
            conv.to(**how)
        self.reads_float32 = bool(first)
        self._hooks = [conv.register_forward_pre_hook(_in_float32) for conv in (*first, *last)]
        self._hooks += [conv.register_forward_hook(_in_bfloat16) for conv in first]

    def takes(self, verb: str) -> dict[str, Any]:
        """Options of `Tensor.to` for what `encode` or `decode` is given."""
        exact = verb == "encode" and self.reads_float32
        return {"dtype": torch.float32 if exact else self.dtype, "memory_format": self.layout}

    def end(self) -> None:
        """Takes back what it has hung on the autoencoder's modules, but not the cast."""
        for hook in self._hooks:
            hook.remove()


def _in_float32(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in args)


def _in_bfloat16(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out.bfloat16()


def compile_halves(autoencoder: nn.Module) -> int:
    """Compiles the modules called encoder and decoder, in blocks where they have any; how many modules there are."""
    halves = [*named(autoencoder, "encoder"), *named(autoencoder, "decoder")]
    for half in halves:
        compile_network(half)
    return len(halves)


def named(autoencoder: nn.Module, name: str) -> list[nn.Module]:
    """The modules of that name, wherever they are."""
    return [module for path, module in autoencoder.named_modules() if path.rpartition(".")[2] == name]


def convolutions(half: nn.Module) -> list[nn.Conv2d]:
    """In the order in which they were made, which is that of their work."""
    return [module for module in half.modules() if isinstance(module, nn.Conv2d)]
