"""Which codec makes a data set: a recipe that any process can follow, or a codec of the caller's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noisebook import backbones
from noisebook.backbones.factory import refusal
from noisebook.backbones.precision import AUTO
from noisebook.codec.codec import Codec
from noisebook.codec.load import load
from noisebook.errors import BackboneError, SpecError
from noisebook.images.targets import Aim, Target, curve_of
from noisebook.rules import EFFORT
from noisebook.runtime.devices import device_named, usable_device
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec

Size = tuple[int, int]  # (height, width)
Network = Mapping[str, str]
CodecMaker = Callable[[Size | None, Network], Codec]  # size of all images or None, `network` of the plan -> the codec
CodecFunction = Callable[[str, Size | None], Codec]  # (device, size of all images or None) -> the codec

NOTHING: Network = {}
RATE_CHANGES = ("vocab_size", "seed")  # that go with `bpp`, which makes its own schedule
CONDITION_TYPES = {"guidance": float, "label": int}  # of conditions that are no text
DECODER_CONDITIONS = (
    "prompt",
    "negative_prompt",
    "guidance",
    "label",
    "variant",
)  # never a path: a plan may come from a stranger


@dataclass(frozen=True)
class CodecRecipe:
    """All that a process needs to make a codec. It can be pickled, and its plan is the one of the command's options.

    preset      codec by name; None: `photo`
    backbone    a name, file, folder, hub id or MODULE:FACTORY in place of the preset's
    device      where the codec works: cpu, cuda, cuda:1, ...
    changes     fields of `noisebook.spec.presets.Recipe` that replace the preset's: steps, budget, vocab_size, seed, ...
    conditions  of the backbone: prompt, negative_prompt, guidance, label, variant, autoencoder
    bpp         bits per pixel of the tokens, in place of a preset, for images of one size: a calibrated schedule, which
                takes only the changes vocab_size and seed
    max_nfe     with bpp: network calls of a decode at most (default: 25)
    curve       with bpp: the file that `noisebook calibrate` wrote (default: the curve that came with the backbone)
    effort, candidates, channels_last, graphs   as of `noisebook.load`
    dtype       as of `noisebook.load`; auto: as the plan says, in which `tokenize` has written what it is here
    compile     as of `noisebook.load`; None: only `tokenize` does it, on CUDA, for a data set that is large enough

    Raises SpecError for fields that do not go together.
    """

    preset: str | None = None
    backbone: str | None = None
    device: str = "cpu"
    changes: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    bpp: float | None = None
    max_nfe: int | None = None
    curve: str | None = None
    effort: int = EFFORT
    candidates: int = 1
    dtype: str = AUTO
    channels_last: bool = False
    compile: bool | None = None
    graphs: bool = True

    def __post_init__(self) -> None:
        if self.bpp is None:
            if self.max_nfe is not None or self.curve is not None:
                raise SpecError("--max-nfe and --curve go with --bpp")
            return
        other = [name for name in self.changes if name not in RATE_CHANGES] or ["preset"] * (self.preset is not None)
        if other:
            name = other[0].replace("_", "-")
            raise SpecError(f"--bpp makes its own schedule: it goes with --vocab-size and --seed, not with --{name}")

    def network(self) -> dict[str, str]:
        """What tokens depend on beside specification and input, as a plan records it: how the network computes, and what it
        is conditioned on; "" is left open (choices.py). Graphs change no token, and of a device only its kind does."""
        conditions = {name: value for name, value in self.conditions.items() if value is not None}
        values = {
            "dtype": "" if self.dtype == AUTO else self.dtype,
            "channels_last": self.channels_last,
            "compile": "" if self.compile is None else self.compile,
            "effort": self.effort,
            "candidates": self.candidates,
            "device": _kind(self.device),
            **{name: CONDITION_TYPES.get(name, str)(value) for name, value in conditions.items()},
        }
        return {name: str(value) for name, value in values.items()}

    def load(
        self,
        size: Size | None = None,
        network: Network = NOTHING,
        device: str | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> Codec:
        """The codec, for images of this (height, width) or of any (None), on `device` (None: the recipe's). `network`: what
        a plan says where the recipe leaves it open. `log` is called with a line for each warning about changes.

        Raises SpecError (bad numbers or device, or a rate for images of many sizes), and as `noisebook.load`."""
        where = usable_device(self.device if device is None else device)
        compile = network.get("compile") == "True" if self.compile is None else self.compile
        dtype = network.get("dtype", AUTO) if self.dtype == AUTO else self.dtype
        if self.bpp is not None:
            return self._codec_of_rate(self.bpp, size, where, {"dtype": dtype, "compile": compile})
        codec = load(
            self.preset or presets.DEFAULT,
            backbone=self.backbone,
            device=where,
            dtype=dtype,
            channels_last=self.channels_last,
            compile=compile,
            graphs=self.graphs,
            effort=self.effort,
            candidates=self.candidates,
            conditions=self.conditions,
            **self.changes,
        )
        for message in codec.spec.warnings() if self.changes else ():
            log(f"warning: {message}")
        return codec

    def _codec_of_rate(self, bpp: float, size: Size | None, device: str, how: Mapping[str, Any]) -> Codec:
        if size is None:
            raise SpecError("--bpp makes a codec for one size of images: give --resize, or take a preset")
        target = Target(bpp=bpp, **({} if self.max_nfe is None else {"max_nfe": self.max_nfe}), **self.changes)
        name = self.backbone or presets.get(presets.DEFAULT).spec.backbone
        how = {**how, "channels_last": self.channels_last}
        backbone = backbones.load(name, device, accelerated=how, **self.conditions)
        aim = Aim(target, backbone, curve_of(backbone, self.curve), self.graphs, self.effort, self.candidates)
        bits = bpp * size[0] * size[1]
        return aim.codec(*size, max(2, round(bits / (target.vocab_size.bit_length() - 1))))


CodecSource = str | CodecRecipe | CodecFunction | Codec


@dataclass(frozen=True)
class OwnCodec:
    """A codec of the caller's own: a live one, or a function that makes it. What a plan can know of it is less."""

    source: Codec | CodecFunction
    device: str

    def network(self) -> dict[str, str]:
        return {"device": _kind(self.device)}

    def load(
        self,
        size: Size | None = None,
        network: Network = NOTHING,
        device: str | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> Codec:
        if isinstance(self.source, Codec):
            return self.source
        return self.source(usable_device(self.device if device is None else device), size)


def recipe_of(codec: CodecSource, device: str | None = None, alive: bool = True) -> CodecRecipe | OwnCodec:
    """What `tokenize` is given as `codec`, on `device` (None: where it says itself; a function: cpu).

    Raises SpecError for a live codec that is on another device, or where it may not be `alive`, and for other types."""
    if isinstance(codec, str):
        codec = CodecRecipe(codec)
    if isinstance(codec, CodecRecipe):
        return codec if device is None else replace(codec, device=device)
    if isinstance(codec, Codec):
        if not alive:
            raise SpecError("a live codec stays in its process: for Ray give a CodecRecipe, or (device, size) -> Codec")
        there = codec.backbone.device
        wanted = there if device is None else device_named(device)
        if wanted.type != there.type or wanted.index not in (None, there.index):
            raise SpecError(f"the codec is on {there}, not on {device}: a live codec works where it is")
        return OwnCodec(codec, str(there))
    if callable(codec):
        return OwnCodec(codec, device or "cpu")
    raise SpecError(
        "codec must be the name of a preset, a CodecRecipe, a function (device, size) -> Codec, or a Codec, not "
        f"{type(codec).__name__}"
    )


def decoder(
    spec: CodecSpec,
    network: Mapping[str, str],
    backbone: str | None = None,
    device: str = "cpu",
    realism_network: str | Path | None = None,
    factory: str = "",
) -> Codec:
    """The codec that decodes a data set, computing and conditioned as when the tokens were made: `network` is what
    `CodecRecipe.network` has left in the plan.

    backbone  where it is, if it did not come with the package
    realism_network   as of `noisebook.load`: a plan names none
    factory   what the plan says of the backbone's factory: it is named, not imported
    Raises as `noisebook.load`, and BackboneError where a factory has made the backbone and none is given."""
    if factory and backbone is None:
        raise BackboneError(refusal(factory))
    conditions = {k: CONDITION_TYPES.get(k, str)(v) for k, v in network.items() if k in DECODER_CONDITIONS}
    dtype = network.get("dtype", "float32")
    where = {"backbone": backbone, "device": usable_device(device), "realism_network": realism_network}
    return load(spec, dtype=dtype, conditions=conditions, **where)


def _kind(device: str) -> str:
    """cuda:1 -> cuda."""
    return device.split(":")[0]
