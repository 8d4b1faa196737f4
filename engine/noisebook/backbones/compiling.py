"""torch.compile, block by block: what repeats in a network is compiled once, and not once for each of its copies."""

from typing import Any

from torch import nn

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")  # of diffusers' UNets and autoencoders; its other classes name theirs
VARIANTS = 64  # of a block's code that may be compiled: UNets have blocks of many widths, and torch gives up after 8


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks in a network of diffusers of which it is built, none inside another: those of BLOCKS, and of classes that
    the model's own class calls its repeated blocks. Empty where there are none."""
    names = {*BLOCKS, *(name for part in net.modules() for name in getattr(part, "_repeated_blocks", None) or ())}
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for part in module.children():
            if type(part).__name__ in names:
                found.append(part)
            else:
                look(part)

    look(net)
    return found


def compile_network(net: nn.Module, **options: Any) -> None:
    """Compiles a network in place: its repeated blocks where it has any, else all of it. `options`: of `torch.compile`.

    A block is compiled for the first size, then once more for any size. Nothing is compiled before the first call."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    for part in repeated_blocks(net) or [net]:
        part.compile(**options)
