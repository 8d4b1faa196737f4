"""The decoder: the walk of the encoder, with the tokens given."""

import torch
from torch import Tensor

from noisebook.codec import packing
from noisebook.codec.stream import Segment, Stream
from noisebook.codec.walk import Parts, solve, walk
from noisebook.runtime.profiler import stage


def decode(parts: Parts, stream: Stream, given: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, L] or payloads uint8 [B, bytes] -> (bool [], whether they were valid; the decoded images)."""
    with stage("pack"):
        read = packing.unpack if given.dtype == torch.uint8 else packing.clamp
        tokens, valid = read(given, stream.runs)

    def choose(segment: Segment, _: Tensor) -> Tensor:
        return tokens[:, segment.offset : segment.offset + segment.count]

    steps = len(parts.spec.schedule) if stream.steps is None else stream.steps
    y, cond = walk(parts, stream, len(tokens), choose, steps)
    return valid, solve(parts, stream, y, cond)
