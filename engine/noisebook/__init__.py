"""noisebook: images to integer tokens and back, with any pretrained diffusion model and no training.

import noisebook
codec = noisebook.load("photo")           # a preset; every number of its recipe is a keyword
tokens = codec.encode(images)             # uint8 [B, 3, H, W] -> int64 [B, L]
images = codec.decode(tokens, (H, W))     # -> float32 [B, 3, H, W] in about [-1, 1]
"""

from typing import TYPE_CHECKING, Any

from noisebook.errors import BackboneError, CodecMismatchError, FormatError, ImageError, NoisebookError, SpecError
from noisebook.runtime import __version__
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.codec.load import load


def __getattr__(name: str) -> Any:  # `load` brings torch: `import noisebook` alone stays light
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from noisebook.codec.load import load

    return load


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
    "load",
]
