"""A codec by name: what `noisebook.load` does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisebook import backbones
from noisebook.backbones import Backbone
from noisebook.backbones.base import DTYPES, accelerate
from noisebook.backbones.precision import AUTO
from noisebook.codec.checks import check_backbone
from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.rules import EFFORT
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec


def load(
    preset: str | CodecSpec = "photo",
    *,
    backbone: str | Backbone | None = None,
    device: str = "cpu",
    dtype: str = AUTO,
    channels_last: bool = False,
    compile: bool = False,
    graphs: bool = True,
    effort: int = EFFORT,
    candidates: int = 1,
    conditions: Mapping[str, Any] | None = None,
    realism_network: str | Path | None = None,
    **changes: Any,
) -> Codec:
    """A codec by the name of a preset, or by its specification.

    backbone  a name, path, `Backbone`, or MODULE:FACTORY (your own function, which gives a `Backbone` without arguments: its
              module is imported) to use instead of the preset's; needed for a specification whose backbone does not come
              with the package: what a specification names is never opened, downloaded or imported
    device    where the backbone is put and the work is done; of other kinds than cpu and cuda, where the network runs
    dtype, channels_last, compile   how the network computes inside, see `Backbone.accelerate`: float32, bfloat16, ...;
              auto: bfloat16 where the device has instructions for it and that loses next to nothing, else float32
              (docs/performance.md); a backbone that is given as an object stays as it is. `Codec.dtype` says which
    graphs    on CUDA: replay a whole encode or decode as one graph, see docs/performance.md
    effort    how often an encoder chooses the tokens of a step again, given the others (rule `bins`, steps with more than
              one bit for 40 dimensions); by default once, as in `Codec`; decoding does not depend on it
    candidates   sets of tokens that an encoder tries at each step, each for one network call; decoding does not depend on it
    conditions   what a model is conditioned on: prompt, negative_prompt, guidance, label, variant (docs/backbones.md)
    realism_network   file of what `decode(realism=...)` uses in place of the network that came with the backbone
    changes   fields of `noisebook.spec.presets.Recipe` that replace the preset's: steps, budget, vocab_size, seed, ...

    Raises SpecError (unknown preset or bad numbers), BackboneError (not found or unreadable, or it has no network to
    accelerate), CodecMismatchError (a specification's backbone is another).
    """
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
    find = backbones.load_recorded if backbone is None and recipe is None else backbones.load
    how = {"dtype": dtype, "channels_last": channels_last, "compile": compile}
    model = find(chosen, device, accelerated=how, **(conditions or {})) if isinstance(chosen, str) else chosen
    check_backbone(model)
    presets.check_tokens(model, **changes)
    if recipe is not None and (changes or backbone is not None):
        spec = recipe.build(model)
    if not isinstance(chosen, str):
        accelerate(model, how if dtype != AUTO else {**how, "dtype": _left_alone(model, channels_last or compile)})
    return Codec(spec, model, graphs, effort, candidates, realism_network)


def _left_alone(model: Backbone, asked: bool) -> str:
    """The dtype that changes nothing in a backbone of the caller's own, of which something else is `asked` or not."""
    return model.accelerated_to if asked and model.accelerated_to in DTYPES else "float32"
