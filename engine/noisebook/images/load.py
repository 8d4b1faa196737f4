"""A codec in one call, by the name of a preset or aimed at a rate, a quality or a number of tokens: `noisebook.load`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from noisebook.backbones import Backbone
from noisebook.backbones.precision import AUTO
from noisebook.codec import load as by_name
from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.images.pillow import pixels_of_pil
from noisebook.images.targets import CLOSE, NFE, Aim, Target, curve_of
from noisebook.rules import EFFORT
from noisebook.spec import curve as curves
from noisebook.spec import presets
from noisebook.spec.curve import Curve
from noisebook.spec.spec import CodecSpec

OWN = ("vocab_size", "seed")  # changes that go with an aim, which makes the rest itself
Size = tuple[int, int]


def load(
    preset: str | CodecSpec | None = None,
    *,
    backbone: str | Backbone | None = None,
    curve: str | Path | Curve | None = None,
    bpp: float | None = None,
    psnr: float | None = None,
    tokens: int | None = None,
    size: Size | None = None,
    max_nfe: int | None = None,
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
    """A codec: a preset (`photo`, if nothing else is said), or one that is aimed at a rate, a quality or a number of tokens.

        load()                                    the preset photo, about .25 bits per pixel
        load("photo-low", steps=20, seed=7)       a preset with changes
        load(bpp=0.25)                            a rate, at any size of picture
        load(tokens=256, size=(256, 256))         a number of tokens
        load(psnr=30, backbone=mine, curve="mine.curve.json")

    preset    the name of a preset, or a finished specification
    backbone  a name, path, `Backbone`, or MODULE:FACTORY (your own function, which gives a `Backbone` without arguments: its
              module is imported) to use instead of the preset's; needed for a specification whose backbone does not come
              with the package: what a specification names is never opened, downloaded or imported

    An aim takes the place of a preset, and needs a backbone with a curve; give one of

    bpp       bits of tokens per pixel; a file has 24 bytes more, or its whole specification
    psnr      dB that the curve predicts for pictures like those it was measured on, of 8 bits. Other pictures differ from
              that by several dB, and nothing is tried: `noisebook encode --psnr` tries until a picture has it
    tokens    tokens per image, about: budgets are powers of two, and `tokens_per_image` says the number. With none of size,
              curve and max_nfe it changes only the preset's number, which is for images of 512 x 768 pixels: an image of
              another size then has more or fewer tokens, in proportion to its pixels

    and with it

    size      (H, W) of the images, which becomes `default_size`: the schedule is the best for it, and every image gets this
              number of tokens. Without it, it is made for the backbone's own size, or for 512 x 768, and the tokens grow
              and shrink with the picture
    curve     what `noisebook calibrate` wrote (a file or a `Curve`); by default the one that came with the backbone
    max_nfe   network calls of a decode at most, by default 25
    vocab_size, seed   as in a preset; no other change goes with an aim

    device    where the backbone is put and the work is done; of other kinds than cpu and cuda, where the network runs
    dtype, channels_last, compile   how the network computes inside, see `Backbone.accelerate`: float32, bfloat16, ...;
              auto: bfloat16 where the device has instructions for it and that loses next to nothing, else float32
              (docs/performance.md); a backbone that is given as an object is unchanged. `Codec.dtype` says which
    graphs    on CUDA: replay a whole encode or decode as one graph, see docs/performance.md
    effort    how often an encoder chooses the tokens of a step again, given the others (rule `bins`, steps with more than
              one bit for 40 dimensions); by default once, as in `Codec`; decoding does not depend on it
    candidates   sets of tokens that an encoder tries at each step, each for one network call; decoding does not depend on it
    conditions   what a model is conditioned on: prompt, negative_prompt, guidance, label, variant (docs/backbones.md)
    realism_network   file of what `decode(realism=...)` uses in place of the network that came with the backbone
    changes   fields of `noisebook.spec.presets.Recipe` that replace the preset's: steps, budget, vocab_size, seed, ...; a
              `budget` by itself is that of every step, whatever the size of the image

    Raises SpecError (unknown preset, bad numbers, options that contradict each other, an aim that cannot be had),
    BackboneError (not found or unreadable, a curve of another backbone, or no network to accelerate), CodecMismatchError (a
    specification's backbone is another).
    """
    how = {"dtype": dtype, "channels_last": channels_last, "compile": compile}
    rest = {"graphs": graphs, "effort": effort, "candidates": candidates, "realism_network": realism_network}
    aims = {name: value for name, value in (("bpp", bpp), ("psnr", psnr), ("tokens", tokens)) if value is not None}
    with_it = {name: value for name, value in (("size", size), ("curve", curve), ("max_nfe", max_nfe)) if value is not None}
    if not aims and with_it:
        raise SpecError(f"{next(iter(with_it))} goes with bpp, psnr or tokens: give one of them, or leave it out")
    if not aims or (list(aims) == ["tokens"] and not with_it):
        rest |= {"conditions": conditions, "read_picture": pixels_of_pil}
        return by_name.load(preset or presets.DEFAULT, backbone=backbone, device=device, **how, **rest, **aims, **changes)
    _check(preset, aims, with_it, changes)
    chosen = presets.get(presets.DEFAULT).spec.backbone if backbone is None else backbone
    loaded = by_name.Loaded(chosen, device, how, conditions)
    model = loaded.backbone
    if curve is None and curves.shipped_curve(model) is None:
        raise SpecError(f"{curves.no_curve(model)}, then give curve=FILE")
    measured = curve if isinstance(curve, Curve) else curve_of(model, None if curve is None else str(curve))
    target = Target(**({"bpp": 1.0} if "tokens" in aims else aims), max_nfe=NFE if max_nfe is None else max_nfe, **changes)
    where = (size[0], size[1]) if size else model.native_size or presets.SIZE
    spec = _spec_of(Aim(target, model, measured, graphs=False), where, tokens)
    loaded.accelerate()
    codec = Codec(spec if size else replace(spec, scale_pixels=math.prod(where)), model, **rest, read_picture=pixels_of_pil)
    codec.default_size = where
    return codec


def _check(preset: Any, aims: Mapping[str, Any], with_it: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises SpecError where arguments of an aim contradict each other, or make no sense."""
    if len(aims) > 1:
        raise SpecError(f"ask for one of bpp, psnr and tokens, not for {' and '.join(aims)}")
    (name, aim), also = next(iter(aims.items())), "".join(f" with {other}" for other in [*with_it][:1])
    name += also if name == "tokens" else ""
    if preset is not None:
        it = "a finished specification" if isinstance(preset, CodecSpec) else f"the preset {preset!r}"
        raise SpecError(f"{name} makes its own schedule, which {it} has already: give one of the two")
    for other in changes:
        if other not in OWN:
            raise SpecError(f"{name} makes its own schedule: it goes with {' and '.join(OWN)}, not with {other}")
    if "tokens" in aims and (not isinstance(aim, int) or aim < 2):
        raise SpecError(f"tokens must be a whole number, 2 or more, not {aim!r}")
    size = with_it.get("size", presets.SIZE)
    if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise SpecError(f"size is the (height, width) of the images, not {size!r}")


def _spec_of(aim: Aim, size: Size, tokens: int | None) -> CodecSpec:
    """What is aimed at, for images of that size: a target in bpp or psnr, or this number of tokens. Raises SpecError where
    it cannot be had."""
    target, calls = aim.target, f"for an image of {size[0]} x {size[1]} in {aim.target.max_nfe} network calls"
    if target.psnr is not None:
        least, no = aim.curve.sigma[-1], f"no number of tokens is known to give {target.psnr:g} dB {calls}"
        if target.psnr >= 10 * math.log10(4 / aim.curve.at(least)):  # nothing was measured below it
            raise SpecError(f"{no}: ask for less")
        try:
            spec = aim.codec(*size, aim.tokens_for_psnr(*size, target.psnr)).spec
        except SpecError as error:
            raise SpecError(f"{no}: ask for less, or for more max_nfe ({error})") from error
        near = 10 * math.log10(4 / aim.curve.at(spec.sigma_last))
        if near < target.psnr - CLOSE:
            raise SpecError(f"{no}, at most {near:.2f} dB: ask for less, or for more max_nfe")
        return spec
    bits = target.vocab_size.bit_length() - 1
    wanted = tokens or (target.bpp or 0) * math.prod(size) / bits
    spent, found = max(2, round(wanted)), dict[float, CodecSpec]()
    for _ in range(12):  # budgets are powers of two, and a condition has tokens beside them
        codec = aim.codec(*size, spent)
        have = codec.tokens_per_image(size) if tokens else codec.layout_for(*size).bits / bits
        if have in found:
            break
        found[have] = codec.spec
        spent = max(2, spent + round(wanted - have))
    near = min(found, key=lambda have: abs(have - wanted))
    if abs(near - wanted) > max(0.1 * wanted, 1):
        unit, per = ("tokens", 1.0) if tokens else ("bits per pixel", bits / math.prod(size))
        raise SpecError(
            f"no {wanted * per:g} {unit} {calls}; the nearest is {near * per:g}: ask for that, or for other max_nfe"
        )
    return found[near]


__all__ = ["load"]
