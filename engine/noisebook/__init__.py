"""noisebook: images to integer tokens and back, with any pretrained diffusion model and no training.

import noisebook
codec = noisebook.load("photo")           # a preset; every number of its recipe is a keyword
tokens = codec.encode(images)             # uint8 [B, 3, H, W] -> int64 [B, L]
images = codec.decode(tokens, (H, W))     # -> float32 [B, 3, H, W] in about [-1, 1]
"""

from typing import TYPE_CHECKING, Any

from noisebook.errors import (
    BackboneError,
    CodecMismatchError,
    FormatError,
    ImageError,
    NoisebookError,
    SpecError,
)
from noisebook.spec import CodecSpec, Step

if TYPE_CHECKING:
    from noisebook.backbones import Backbone
    from noisebook.codec import Codec

__version__ = "0.1.0"


def load(
    preset: "str | CodecSpec" = "photo", *, backbone: "str | Backbone | None" = None, device: str = "cpu", **changes: Any
) -> "Codec":
    """A codec by the name of a preset, or by its specification.

    backbone  a name, path or `Backbone` to use instead of the preset's; needed for a specification whose backbone does not
              come with the package
    device    where the backbone is put and the work is done
    changes   fields of `noisebook.presets.Recipe` that replace the preset's: steps, bins, vocabulary, seed, ...

    Raises SpecError (unknown preset or bad numbers), BackboneError (not found or unreadable), CodecMismatchError
    (a specification's backbone is another).
    """
    from noisebook import backbones, presets
    from noisebook.codec import Codec

    if isinstance(preset, CodecSpec):
        if changes:
            raise SpecError("a finished specification takes no changes; start from a preset")
        chosen = preset.backbone if backbone is None else backbone
        return Codec(preset, backbones.load(chosen, device) if isinstance(chosen, str) else chosen)
    entry = presets.get(preset)
    chosen = entry.spec.backbone if backbone is None else backbone
    model = backbones.load(chosen, device) if isinstance(chosen, str) else chosen
    if backbone is None and not changes:
        return Codec(entry.spec, model)
    return Codec(presets.changed(entry.recipe, **changes).build(model), model)


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
