"""noisebook: images to integer tokens and back, with any pretrained diffusion model and no training.

import noisebook
codec = noisebook.load("photo")           # a preset, or aimed: load(bpp=0.25), load(tokens=256, size=(256, 256))
tokens = codec.encode(images)             # uint8 [B, 3, H, W], numpy, PIL or a list -> int64 [B, L]
images = codec.decode(tokens, (H, W))     # -> float32 [B, 3, H, W] in about [-1, 1], or dtype="uint8"
print(noisebook.check(backbone, images))  # whether a model of your own is plugged in as it should be
noisebook.torch.Transform("photo")        # pictures to tokens in the workers of a DataLoader
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from noisebook.errors import BackboneError, CodecMismatchError, FormatError, ImageError, NoisebookError, SpecError
from noisebook.runtime import __version__
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.codec.checkup import check
    from noisebook.datasets import torch
    from noisebook.images.load import load


def __getattr__(name: str) -> Any:  # these bring torch: `import noisebook` alone stays light
    if name == "load":
        from noisebook.images.load import load

        return load
    if name == "check":
        from noisebook.codec.checkup import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Torch(ModuleType):
    """`noisebook.torch` and `from noisebook.torch import ...`: datasets/torch.py, which is imported at its first use."""

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dir__():  # pickle and inspect ask every module for any name: that must not bring torch
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from noisebook.datasets import torch as module

        return getattr(module, name)

    def __dir__(self) -> list[str]:
        return ["Cost", "Transform"]


if not TYPE_CHECKING:  # as os does with os.path
    torch = sys.modules["noisebook.torch"] = _Torch("noisebook.torch")


__all__ = [
    "BackboneError",
    "CodecMismatchError",
    "CodecSpec",
    "FormatError",
    "ImageError",
    "NoisebookError",
    "SpecError",
    "Step",
    "__version__",
    "check",
    "load",
]
