"""The loop: de-noise, choose, back-trace. Encoder and decoder are the same walk; a decoder is given the tokens.

    x0_hat = D(y, sigma)                                        the network's prediction
    token  = select(x0 - x0_hat)                                an encoder chooses, a decoder reads
    y      = x0_hat + keep (y - x0_hat) + sigma_up z(token)     down to sigma_down, up to sigma_next with noise

keep = sigma_down / sigma and sigma_up^2 = sigma_next^2 - sigma_down^2.
y = x0 + sigma eps is the noisy state in noise-to-signal coordinates, z(token) the codeword of root mean square 1.
Nothing here waits for the device: a whole walk can be recorded as one CUDA graph.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.codebook import start_noise
from noisebook.codec.realism import Dial
from noisebook.codec.solvers import ending, solve_ode
from noisebook.codec.stream import Segment, Stream
from noisebook.codec.tiles import Look
from noisebook.errors import BackboneError
from noisebook.rules import Rule
from noisebook.runtime.cuda_graphs import graph_cached
from noisebook.runtime.devices import working_device
from noisebook.runtime.profiler import stage
from noisebook.runtime.progress import network_called
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex

Chooser = Callable[[Segment, Tensor], Tensor]  # (which tokens are due, x0_hat as views [B, U, D]) -> tokens int64 [B, T]
# of a large picture it is asked block by block, with x0_hat as [1, 1, D]: `Segment.block` says which
Settler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (y, x0_hat) of all copies -> those to go on with

fixed_start = graph_cached()(start_noise)


@dataclass(frozen=True)
class Parts:
    """What both ends of a codec have: its specification, the backbone that it names, and its rules."""

    spec: CodecSpec
    backbone: Backbone
    rule: Rule
    start_rule: Rule
    network: Callable[[], Backbone] = field(compare=False)  # what predicts for large pictures
    dial: Dial | None = None  # of a decoder that asks for realism
    sigmas: tuple[float, ...] | None = None  # other levels than the schedule's, of a decode without lost tokens (lost.py)

    @property
    def device(self) -> torch.device:
        """Where the work is done: where the backbone lives, or the host, see `Codec.device`."""
        return working_device(self.backbone.device)


def walk(
    parts: Parts, stream: Stream, batch: int, choose: Chooser, steps: int, settle: Settler | None = None
) -> tuple[Tensor, Any]:
    """From the start through the first `steps` steps of the schedule: (the state y [B, C, h, w], what the network is
    conditioned on, or None). `solve` makes images of it.

    Of a large picture what the network is conditioned on is a `Look`: its resolutions and memory (codec/tiles.py).

    choose   says the tokens that are due, given x0_hat as views: only this differs between encoder and decoder
    settle   of an encoder that looks ahead with several copies of each image: with which of them to go on
    """
    segments = {segment.step_index: segment for segment in stream.segments}
    with stage("start"):
        cond = read_condition(parts, stream, batch, segments.get(StepIndex.CONDITION), choose)
        if stream.tiled:
            cond = look_of(parts, segments[StepIndex.RESOLUTION], choose)
        y = start(parts, stream, batch, segments.get(StepIndex.START), choose)
    for i, step in enumerate(parts.spec.schedule[:steps]):
        sigma = step.sigma if parts.sigmas is None else parts.sigmas[i]
        x0_hat = cond(y, sigma, i) if isinstance(cond, Look) else denoise(parts.backbone, y, sigma, cond)
        if settle is not None:
            y, x0_hat = settle(y, x0_hat)
        if step.from_pure_noise:
            y = x0_hat + y  # y was eps only: no multiple of x0 shows in pure noise
        if i not in segments:
            y = x0_hat + step.keep * (y - x0_hat)
            continue
        if by_block(parts, stream):
            renew(parts, stream, y, x0_hat, segments[i], choose)
            continue
        views, budget = stream.views(x0_hat), segments[i].budget
        tokens = choose(segments[i], views)
        with stage("backtrace"):
            y = stream.join(parts.rule.backtrace(stream.views(y), views, tokens, budget, i, step.keep, step.sigma_up))
    return y, cond


def by_block(parts: Parts, stream: Stream) -> bool:
    """Whether blocks are worked on one by one, so that a large picture takes little memory; on a GPU they are not."""
    return stream.tiled and parts.device.type == "cpu"


def renew(parts: Parts, stream: Stream, y: Tensor, x0_hat: Tensor, segment: Segment, choose: Chooser) -> None:
    """The last line of the loop for a large picture, block by block, in place: y becomes the next state."""
    step = parts.spec.schedule[segment.step_index]
    for block in range(stream.blocks):
        view = stream.view(x0_hat, block)
        tokens = choose(segment.of_block(block, stream.blocks), view)
        with stage("backtrace"):
            rule, index = parts.rule.at(block), segment.step_index
            old = stream.view(y, block)
            stream.put(y, block, rule.backtrace(old, view, tokens, segment.budget, index, step.keep, step.sigma_up))


def look_of(parts: Parts, segment: Segment, choose: Chooser) -> Look:
    """How the network looks at a large picture: at which resolutions, as the tokens of `segment` say."""
    tokens = choose(segment, torch.zeros(1, 1, 1, device=parts.device))
    return Look(parts.network(), tokens[0].tolist())


def denoise(backbone: Backbone, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
    """x0_hat of the state y [B, C, h, w]. Raises BackboneError where the network gives another shape."""
    with stage("network"):
        x0_hat = backbone(y, sigma) if cond is None else backbone(y, sigma, cond)
    if x0_hat.shape != y.shape:
        raise BackboneError(
            f"backbone {backbone.name!r} gave {list(x0_hat.shape)} for a state {list(y.shape)}: "
            "its channels, size or multiple are not those of its network"
        )
    network_called()
    return x0_hat


def read_condition(parts: Parts, stream: Stream, batch: int, segment: Segment | None, choose: Chooser) -> Any:
    """What the backbone makes of the condition's tokens; None without a condition."""
    if segment is None:
        return None
    tokens = choose(segment, torch.zeros(batch, stream.blocks, stream.dims, device=parts.device))
    return parts.backbone.condition(tokens, *stream.padded)


def start(parts: Parts, stream: Stream, batch: int, segment: Segment | None, choose: Chooser) -> Tensor:
    """The initial state [B, C, h, w]: sigma_0 times seeded noise, or times the codewords of the first tokens.

    At sigma_0 = inf it is the noise itself, see `Backbone.denoise`."""
    sigma = parts.spec.sigma_first
    sigma = 1.0 if sigma == math.inf else sigma
    if by_block(parts, stream):
        return _start_by_block(parts, stream, segment, choose, sigma)
    if segment is None:
        z = fixed_start(stream.blocks, stream.dims, parts.spec.seed, parts.device)
        return stream.join((sigma * z).expand(batch, -1, -1))
    nothing = torch.zeros(batch, stream.blocks, stream.dims, dtype=torch.float32, device=parts.device)
    tokens = choose(segment, nothing)
    return stream.join(sigma * parts.start_rule.noise(tokens, (stream.blocks, stream.dims), segment.budget, StepIndex.START))


def _start_by_block(parts: Parts, stream: Stream, segment: Segment | None, choose: Chooser, sigma: float) -> Tensor:
    y = torch.empty(1, *stream.state)
    for block in range(stream.blocks):
        if segment is None:
            z = start_noise(1, stream.dims, parts.spec.seed, parts.device, block)[None]
        else:
            tokens = choose(segment.of_block(block, stream.blocks), torch.zeros(1, 1, stream.dims))
            z = parts.start_rule.at(block).noise(tokens, (1, stream.dims), segment.budget, StepIndex.START)
        stream.put(y, block, z.mul_(sigma))
    return y


def solve(parts: Parts, stream: Stream, y: Tensor, cond: Any) -> Tensor:
    """From the last level to images [B, C, H, W]: one x0_hat, or the probability-flow ODE to 0; with a dial, the first
    mixed with a convincing picture."""
    backbone, state = parts.backbone, y
    solver, sigma, levels, step = ending(parts.spec, stream.steps)
    if parts.sigmas is not None:
        sigma = parts.sigmas[step]
        levels = [level for level in levels if level < sigma]

    def predict(y: Tensor, sigma: float) -> Tensor:  # for the ODE
        if isinstance(cond, Look):
            return cond(y, sigma, step).clone()
        return denoise(backbone, y, sigma, None if cond is None else backbone.guided(cond))

    with stage("solve"):
        if sigma > 0 and solver == "mean":
            y = cond(y, sigma, step) if isinstance(cond, Look) else denoise(backbone, y, sigma, cond)
        elif sigma > 0:
            y = solve_ode(solver, predict, y, sigma, levels)
        if parts.dial is not None:
            y = parts.dial(y, state, sigma, stream.tiled, backbone, predict)
        return backbone.decode(y)[:, :, : stream.height, : stream.width]
