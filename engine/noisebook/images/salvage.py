"""Pictures of damaged `.nbk` files: what is left of the tokens is decoded, and every fault is said.

No token of rule `bins` depends on another, so that a wrong bit costs one atom. A file whose end is missing is decoded as
far as its steps go; of the last of them, the tokens that are missing are skipped (codec/lost.py).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from noisebook.errors import FormatError, SpecError
from noisebook.format.container import Container, packed_bits
from noisebook.format.cost import check_cost
from noisebook.format.salvage import Wreck, tokens_left, wreck_of
from noisebook.images.files import decode_picture, derived_spec, pixels_of, refuse_costly
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.spec import curve as curves
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec

if TYPE_CHECKING:
    import numpy as np

    from noisebook.codec.codec import Codec
    from noisebook.codec.stream import Segment, Stream

NEAR = 8  # of the 64 bits of a codec hash that may be wrong: no two codecs are so alike by chance
SHARE = 16  # a step is left out where less than 1 / SHARE of its bits is there


def opened(data: bytes) -> Wreck:
    """What is left of a file, with the codec hash mended where the specification that it names is known. Raises FormatError
    for a header that makes no sense."""
    wreck = wreck_of(data)
    spec = _spec_of(wreck.head)
    if spec is None or spec.hash == wreck.head.codec_hash:
        return wreck
    faults = [*wreck.faults, "the codec hash is damaged"]
    return wreck._replace(head=replace(wreck.head, codec_hash=spec.hash), faults=faults)


def _spec_of(head: Container) -> CodecSpec | None:
    """The specification that a damaged header names, or None where it is the user's to name it."""
    try:
        if head.spec_json is not None:
            return CodecSpec.from_json(head.spec_json)
        if head.derived is None:
            near = min(presets.presets().values(), key=lambda preset: _apart(preset.spec.hash, head.codec_hash))
            return near.spec if _apart(near.spec.hash, head.codec_hash) <= NEAR else None
        curve = curves.by_number(head.preset)
        if curve is None:
            raise FormatError(f"its header names the curve {head.preset}, which is unknown: it is damaged, or newer")
        spec = derived_spec(curve, head.derived, head.height, head.width)
    except SpecError as error:
        raise FormatError(f"its header makes no sense: {error}") from error
    if _apart(spec.hash, head.codec_hash) > NEAR:
        raise FormatError("its header makes no sense: size, curve, steps or tokens are not those of its codec hash")
    return spec


def _apart(one: bytes, other: bytes) -> int:
    """In how many bits two hashes differ."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def salvage_picture(
    codec: "Codec", wreck: Wreck, steps: int | None = None, limits: Limits = DEFAULT, realism: float = 0.0
) -> "tuple[np.ndarray, list[str], int | None]":
    """What is left of a file of this codec -> (uint8 [H, W, C], what was wrong with the file, of how many of its first steps
    the picture is made: None where of all). `steps`, `limits` and `realism` are as of `decode_picture`.

    Raises FormatError where nothing can be decoded: more bytes than the codec has, nothing of the first step, a rule whose
    tokens are lost from the first wrong bit on, and what `decode_picture` refuses of limits."""
    import torch

    size, faults = (wreck.head.height, wreck.head.width), list(wreck.faults)
    refuse_costly(codec, size, limits, steps, realism)
    if not faults:
        try:
            return decode_picture(codec, replace(wreck.head, payload=wreck.body), steps, limits, realism), [], steps
        except FormatError as error:  # of the payload: its padding is no fault
            faults = [] if "padding" in str(error) else [str(error)]
    if not codec.rule.fixed_length:
        raise FormatError(
            f"tokens of rule {codec.spec.rule} are lost from the first wrong bit on, and nobody knows which that is: the "
            "rest of the file is of no use"
        )
    stream = codec.stream(*size)
    whole = -(-packed_bits(stream.runs) // 8)
    missing = whole + wreck.tail - len(wreck.body)
    if missing < 0 or (missing and wreck.exact):
        raise FormatError(
            f"{len(wreck.body):,} bytes follow its header where the codec has {whole + wreck.tail:,} for an image of "
            f"{size[0]} x {size[1]}: its size is damaged, or it is of another codec"
        )
    if missing:
        faults.append(f"the last {missing:,} bytes are missing")
    payload = wreck.body[:whole]
    segments, there = _there(stream, 8 * len(payload), codec.rule.stands_alone)
    if there < len(codec.spec.schedule):
        faults.append(f"the picture is made of the first {there} of {len(codec.spec.schedule)} steps")
        steps = min(there, steps or there)
    runs = [run for segment in segments for run in segment.runs]
    need = -(-packed_bits(runs) // 8)
    check_cost(need, runs, limits)
    tokens, lost = tokens_left(payload[:need], runs)
    mask = None
    if lost.any() and codec.rule.stands_alone:
        faults.append(f"{int(lost.sum()):,} of the {len(lost):,} tokens of these steps are lost, and are skipped")
        mask = torch.from_numpy(lost)[None]
    image = codec.decode(torch.from_numpy(tokens)[None], size, steps, realism, mask)[0]
    return pixels_of(image), faults, steps


def _there(stream: "Stream", bits: int, alone: bool) -> "tuple[list[Segment], int]":
    """(the segments of which the first `bits` bits of the payload have something to say, how many steps they are). Of the
    last one tokens may be missing, where tokens stand `alone`. Raises FormatError where there is no step among them."""
    found, at = [], 0
    for segment in stream.segments:
        size = packed_bits(segment.runs)
        if at + size > bits:
            part = alone and segment.step_index >= 0 and SHARE * (bits - at) >= size
            steps = segment.step_index + part
            if steps < 1:
                raise FormatError("too little is left of it: not even the first step is there")
            return [*found, segment] if part else found, steps
        found.append(segment)
        at += size
    return found, 1 << 32
