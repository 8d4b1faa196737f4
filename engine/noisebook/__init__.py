"""noisebook: images to integer tokens and back, with any pretrained diffusion model and no training.

import noisebook
codec = noisebook.load("photo")           # a preset, or aimed: load(bpp=0.25), load(tokens=256, size=(256, 256))
tokens = codec.encode(images)             # uint8 [B, 3, H, W], numpy, PIL or a list -> int64 [B, L]
images = codec.decode(tokens, (H, W))     # -> float32 [B, 3, H, W] in about [-1, 1], or dtype="uint8"
print(noisebook.check(backbone, images))  # whether a model of your own is plugged in as it should be
"""

from typing import TYPE_CHECKING, Any

from noisebook.errors import BackboneError, CodecMismatchError, FormatError, ImageError, NoisebookError, SpecError
from noisebook.runtime import __version__
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.codec.checkup import check
    from noisebook.images.load import load


def __getattr__(name: str) -> Any:  # these bring torch: `import noisebook` alone stays light
    if name == "load":
        from noisebook.images.load import load

        return load
    if name == "check":
        from noisebook.codec.checkup import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
