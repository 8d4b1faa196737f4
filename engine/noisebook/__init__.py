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
    from collections.abc import Mapping

    from noisebook.backbones import Backbone
    from noisebook.codec import Codec

__version__ = "0.1.0"


def load(
    preset: "str | CodecSpec" = "photo", *, backbone: "str | Backbone | None" = None, device: str = "cpu",
    dtype: str = "float32", channels_last: bool = False, compile: bool = False, graphs: bool = True, effort: int = 1,
    candidates: int = 1, conditions: "Mapping[str, Any] | None" = None, **changes: Any,
) -> "Codec":  # fmt: skip
    """A codec by the name of a preset, or by its specification.

    backbone  a name, path or `Backbone` to use instead of the preset's; needed for a specification whose backbone does not
              come with the package
    device    where the backbone is put and the work is done
    dtype, channels_last, compile   how the network computes inside, see `Backbone.accelerate`: float32 or bfloat16, ...
    graphs    on CUDA: replay a whole encode or decode as one graph, see docs/performance.md
    effort    how often an encoder chooses the tokens of a step anew, given the others; files decode without knowing
    candidates   sets of tokens that an encoder tries at each step, at so many network calls; files decode without knowing
    conditions   what a model with conditions is told: prompt, negative_prompt, guidance, label (docs/backbones.md)
    changes   fields of `noisebook.presets.Recipe` that replace the preset's: steps, bins, vocabulary, seed, ...

    Raises SpecError (unknown preset or bad numbers), BackboneError (not found or unreadable, or it has no network to
    accelerate), CodecMismatchError (a specification's backbone is another).
    """
    from noisebook import backbones, presets
    from noisebook.codec import Codec

    if isinstance(preset, CodecSpec):
        if changes:
            raise SpecError("a finished specification takes no changes; start from a preset")
        spec, recipe = preset, None
    else:
        entry = presets.get(preset)
        spec, recipe = entry.spec, presets.changed(entry.recipe, **changes)
    chosen = spec.backbone if backbone is None else backbone
    if conditions and not isinstance(chosen, str):
        raise SpecError("a backbone that is already loaded takes no conditions; give them to noisebook.backbones.load")
    model = backbones.load(chosen, device, **(conditions or {})) if isinstance(chosen, str) else chosen
    if recipe is not None and (changes or backbone is not None):
        spec = recipe.build(model)
    if (dtype, channels_last, compile) != ("float32", False, False):
        model.accelerate(dtype, channels_last, compile)
    return Codec(spec, model, graphs, effort, candidates)


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
