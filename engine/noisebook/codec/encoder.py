"""What an encoder does at each step of the walk: it chooses tokens, and may look ahead.

An encoder that looks ahead walks with several copies of every image, each with its own tokens, whose scores nearly
tie, and goes on from the copy on which the network errs least (docs/findings/coding-ideas.md). A decoder need not
know."""

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.codebook import start_noise
from noisebook.codec import packing
from noisebook.codec.stream import Segment, Stream
from noisebook.codec.tiles import crops_of, resolutions_for
from noisebook.codec.walk import Parts, denoise, solve, walk
from noisebook.runtime.cuda_graphs import graph_cached
from noisebook.runtime.pixels import from_uint8
from noisebook.runtime.profiler import stage
from noisebook.spec.step import Step, StepIndex

SHAKE = 0.1  # of the residual's root mean square: how far apart the residuals are that copies choose for
STRIDE = 7919  # a prime: each step shakes by another rotation of one noise

kept_noise = graph_cached(64)(start_noise)


def encode(
    parts: Parts,
    candidates: int,
    stream: Stream,
    with_images: bool,
    packed: bool,
    images: Tensor,
    weights: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Images uint8 or float32 [B, C, H, W] -> (status, tokens int64 [B, L] or payloads uint8 [B, bytes], and the decoded
    images if `with_images`).

    status: float32 [2 + segments], whether the input was in range, whether all was finite, and the mean squared error before
    the tokens of the start and of each step that has any."""
    if stream.tiled:
        return _encode_large(parts, stream, with_images, packed, images, weights)
    spec, backbone = parts.spec, parts.backbone
    x = from_uint8(images)
    bottom, right = stream.padded[0] - stream.height, stream.padded[1] - stream.width
    padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
    looked_at = any(segment.step_index != StepIndex.CONDITION for segment in stream.segments)  # or no autoencoder has to run
    x0 = stream.views(backbone.encode(padded) if looked_at else x.new_zeros(len(x), *stream.state))
    counts = None if weights is None else stream.views(_state_weights(stream, weights, (right, bottom)))
    chosen: list[Tensor] = [torch.zeros(candidates * len(x), 0, dtype=torch.int64, device=x.device)]
    status = [(x.abs() <= 1.001).all().float()]
    ahead = Lookahead(candidates, x0, counts, spec.seed)

    def choose(segment: Segment, x0_hat: Tensor) -> Tensor:
        if segment.step_index == StepIndex.CONDITION:
            chosen.append(backbone.encode_condition(padded).flatten(1).repeat(candidates, 1))
            return chosen[-1]
        residual = ahead.x0 - x0_hat
        status.append(residual.square().mean())
        residual = residual if ahead.counts is None else residual * ahead.counts
        with stage("select"):
            chosen.append(_select(parts, segment, ahead.shaken(residual, segment.step_index)))
        return chosen[-1]

    def settle(y: Tensor, x0_hat: Tensor) -> tuple[Tensor, Tensor]:
        best = ahead.best(stream.views(x0_hat))
        chosen[-1] = chosen[-1][best]
        return y[best], x0_hat[best]

    steps = len(spec.schedule) if with_images or candidates > 1 else spec.coded_steps
    if candidates == 1:
        y, cond = walk(parts, stream, len(x), choose, steps)
    else:
        y, cond = walk(parts, stream, len(ahead.x0), choose, steps, settle)
        y = settle(y, denoise(backbone, y, spec.sigma_last, cond) if spec.sigma_last > 0 else y)[0][: len(x)]
        cond = backbone.condition(chosen[1][: len(x)], *stream.padded) if spec.condition else None
    y = solve(parts, stream, y, cond) if with_images else y
    status.insert(1, torch.isfinite(y).all().float())
    tokens = torch.cat(chosen, 1)[: len(x)]
    if packed:
        with stage("pack"):
            tokens = packing.pack(tokens, stream.runs)
    return torch.stack(status), tokens, *((y,) if with_images else ())


def _encode_large(
    parts: Parts, stream: Stream, with_images: bool, packed: bool, images: Tensor, weights: Tensor | None
) -> tuple[Tensor, ...]:
    """As `encode`, of one large picture."""
    spec, backbone = parts.spec, parts.backbone
    edges = (stream.padded[1] - stream.width, stream.padded[0] - stream.height)
    rows, columns = (torch.arange(n, device=images.device) for n in stream.padded)
    x0 = images[:, :, rows.clamp(max=stream.height - 1)][..., columns.clamp(max=stream.width - 1)]
    x0 = x0 if backbone.on_pixels else backbone.encode(from_uint8(x0))  # as bytes where it can be: it takes a quarter
    counts = None if weights is None else _state_weights(stream, weights, edges)
    chosen: list[Tensor] = []
    errors: dict[int, list[Tensor]] = {}
    steps = len(spec.schedule) if with_images else spec.coded_steps

    def choose(segment: Segment, x0_hat: Tensor) -> Tensor:
        if segment.step_index == StepIndex.RESOLUTION:
            levels = [step.sigma for step in spec.schedule] + [spec.sigma_last] * (spec.sigma_last > 0)
            found = resolutions_for(
                parts.network(), from_uint8(crops_of(x0)), levels, segment.count, segment.runs[0].vocab_size - 1
            )
            chosen.append(torch.tensor([found], device=x0.device))
            return chosen[-1]
        block = segment.block
        values = stream.views(x0) if block is None else stream.view(x0, block)  # of one channel it may be x0's own memory
        residual = from_uint8(values).sub_(x0_hat) if values.dtype == torch.uint8 else values - x0_hat
        errors.setdefault(segment.step_index, []).append(residual.square().mean())
        if counts is not None:
            residual = residual * (stream.views(counts) if block is None else stream.view(counts, block))
        with stage("select"):
            chosen.append(_select(parts, segment, residual))
        return chosen[-1]

    y, cond = walk(parts, stream, 1, choose, steps)
    y = solve(parts, stream, y, cond) if with_images else y
    in_range = images.dtype == torch.uint8 or bool((images.aminmax().max <= 1.001) & (images.aminmax().min >= -1.001))
    status = [y.new_tensor(float(in_range)), torch.isfinite(y.sum()).float()]
    status += [torch.stack(parts_of).mean() for parts_of in errors.values()]
    tokens = torch.cat(chosen, 1)
    if packed:
        with stage("pack"):
            tokens = packing.pack(tokens, stream.runs)
    return torch.stack(status), tokens, *((y,) if with_images else ())


def _select(parts: Parts, segment: Segment, residual: Tensor) -> Tensor:
    """The tokens of one step for the residual [B, U, D]: int64 [B, T]."""
    begins = segment.step_index == StepIndex.START
    step: Step = parts.spec.schedule[0 if begins else segment.step_index]
    rule = parts.start_rule if begins else parts.rule
    rule = rule.at(segment.block) if segment.block else rule
    return rule.select(residual, segment.budget, segment.step_index, step.kept, step.sigma_up)


def _state_weights(stream: Stream, weights: Tensor, padding: tuple[int, int]) -> Tensor:
    """Weights of pixels -> of the state, [B or 1, C, h, w]: means over what a place of a latent state covers."""
    w = F.pad(weights, (0, padding[0], 0, padding[1]), mode="replicate")
    c, h, width = stream.state
    return F.adaptive_avg_pool2d(w, (h, width)).expand(-1, c, -1, -1)


class Lookahead:
    """`copies` of a batch x0 float32 [B, U, D], copy after copy: `x0` is [copies B, U, D]. `counts`, [B or 1, U, D], is what
    errors count (`Codec.encode`)."""

    def __init__(self, copies: int, x0: Tensor, counts: Tensor | None, seed: int):
        self.copies, self.seed = copies, seed
        self.x0 = x0.repeat(copies, 1, 1)
        self.counts = counts if counts is None or len(counts) == 1 else counts.repeat(copies, 1, 1)

    def shaken(self, residual: Tensor, step_index: int) -> Tensor:
        """The residuals, those of all copies but the first each with a little noise."""
        if self.copies == 1:
            return residual
        blocks, dims = residual.shape[1:]
        size = residual.square().mean((1, 2), keepdim=True).sqrt() * SHAKE
        parts = [torch.zeros(blocks, dims, device=residual.device)]
        turn = (step_index & 0xFFFFFFFF) * STRIDE % dims  # as uint32, like the codebook's counter: the start is -1
        for copy in range(1, self.copies):
            noise = kept_noise(blocks, dims, (self.seed + copy) % 2**64, residual.device)
            parts.append(noise.roll(turn, -1))
        noises = torch.stack(parts).repeat_interleave(len(residual) // self.copies, 0)
        return residual + size * noises

    def best(self, x0_hat: Tensor) -> Tensor:
        """Where the copy of least error lies, int64 [copies B]: the same for all copies of an image, the first of equals."""
        error = (self.x0 - x0_hat).square()
        error = (error if self.counts is None else error * self.counts).mean((1, 2)).view(self.copies, -1)
        batch = error.shape[1]
        return (error.argmin(0) * batch + torch.arange(batch, device=error.device)).repeat(self.copies)
