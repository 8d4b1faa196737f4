"""torch.compile, block by block: what repeats in a network is compiled once, and not once for each of its copies."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from noisebook.runtime.cache import private_folder

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")  # of diffusers' UNets and autoencoders; its other classes name theirs
PLACE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it has compiled
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
    prepare()
    for part in repeated_blocks(net) or [net]:
        part.compile(**options)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function through torch.compile, as `compile_network` does it."""
    prepare()
    return torch.compile(function)


def prepare() -> None:
    """What is compiled is kept in the user's own cache folder for the next run, unless it says where; torch's own choice, a
    folder with a known name under /tmp, is one that another user may have made."""
    import torch._dynamo
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get(PLACE) not in (None, default_cache_dir())  # torch sets it, too, once it was asked
    if not chosen and (folder := private_folder("compiled")):
        os.environ[PLACE] = str(folder)
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
