"""A codec by the name of a preset, or by its specification: the part of `noisebook.load` that needs no curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisebook import backbones
from noisebook.backbones import Backbone
from noisebook.backbones.base import DTYPES, accelerate
from noisebook.backbones.precision import AUTO
from noisebook.codec.checks import check_backbone
from noisebook.codec.codec import Codec
from noisebook.codec.inputs import PictureReader
from noisebook.errors import SpecError
from noisebook.rules import EFFORT
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec


def load(
    preset: str | CodecSpec = presets.DEFAULT,
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
    read_picture: PictureReader | None = None,
    **changes: Any,
) -> Codec:
    """What `noisebook.load` gives of a preset or a specification, where no rate, quality or number of tokens for a size is
    asked for; `read_picture` is as of `Codec`. Arguments and errors are those of `noisebook.images.load.load`."""
    if isinstance(preset, CodecSpec):
        if changes:
            raise SpecError("a finished specification takes no changes; start from a preset")
        spec, recipe = preset, None
    else:
        entry = presets.get(preset)
        spec, recipe = entry.spec, presets.changed(entry.recipe, **changes)
    how = {"dtype": dtype, "channels_last": channels_last, "compile": compile}
    recorded = backbone is None and recipe is None
    with_model = Loaded(spec.backbone if backbone is None else backbone, device, how, conditions, recorded)
    model = with_model.backbone
    presets.check_tokens(model, **changes)
    if recipe is not None and (changes or backbone is not None):
        spec = recipe.build(model)
    with_model.accelerate()
    return Codec(spec, model, graphs, effort, candidates, realism_network, read_picture)


class Loaded:
    """A backbone by its name, or one of the caller's own, and `how` its network computes: dtype, channels_last, compile. One
    of the caller's own is changed by `accelerate` only, so after all that may be refused.

    recorded   the name was read from a specification: it is never opened, downloaded or imported
    """

    def __init__(
        self,
        chosen: str | Backbone,
        device: str,
        how: Mapping[str, Any],
        conditions: Mapping[str, Any] | None = None,
        recorded: bool = False,
    ):
        if conditions and not isinstance(chosen, str):
            raise SpecError("a backbone that is already loaded takes no conditions; give them to noisebook.backbones.load")
        find = backbones.load_recorded if recorded else backbones.load
        self.by_name, self.how = isinstance(chosen, str), dict(how)
        model = find(chosen, device, accelerated=self.how, **(conditions or {})) if isinstance(chosen, str) else chosen
        check_backbone(model)
        self.backbone = model

    def accelerate(self) -> None:
        """What `how` asks for is done."""
        if not self.by_name:
            others = self.how["channels_last"] or self.how["compile"]
            dtype = _left_alone(self.backbone, others) if self.how["dtype"] == AUTO else self.how["dtype"]
            accelerate(self.backbone, {**self.how, "dtype": dtype})


def _left_alone(model: Backbone, asked: bool) -> str:
    """The dtype that changes nothing in a backbone of the caller's own, of which something else is `asked` or not."""
    return model.accelerated_to if asked and model.accelerated_to in DTYPES else "float32"
