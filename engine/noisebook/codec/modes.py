"""What a codec can do besides coding (DDCM, arXiv 2502.01189): tokens that no image chose, and the pictures they decode to.

Every mode is the loop of `Codec.walk` with another way to choose. What comes out are tokens as any others, so a result is
stored, sent and decoded like an encoded picture: images = codec.decode(tokens, size), bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones import Backbone
from noisebook.codec.codec import Chooser, Codec
from noisebook.codec.inputs import Range
from noisebook.codec.stream import Segment, Stream
from noisebook.errors import BackboneError, CodecMismatchError, ImageError, SpecError
from noisebook.runtime.devices import own_defaults
from noisebook.spec.step import StepIndex

Operator = Callable[[Tensor], Tensor]  # linear: images [B, C, H, W] -> what is observed of them, [B, ...]

MOST = 4096  # codewords of a step that `restore` tries one by one
CHUNK = 1 << 24  # numbers of codewords it holds at a time
REC601 = (0.299, 0.587, 0.114)  # luma of R, G, B


@own_defaults()
def generate(codec: Codec, batch: int, size: tuple[int, int] | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Compressed random generation: every token drawn uniformly -> (tokens int64 [B, L], images float32 [B, C, H, W]).

    The tokens are those of a generator of torch's on the CPU that begins with `seed`, whatever the codec's device; another
    release of torch may draw others, so keep the tokens and not the seed. `size` is (H, W), default `codec.default_size`.
    Raises SpecError for a batch below 1.
    """
    stream, generator = _begin(codec, batch, size, seed)
    parts = [_drawn(stream, segment, batch, generator) for segment in stream.segments]
    tokens = torch.cat([torch.zeros(batch, 0, dtype=torch.int64), *parts], 1).to(codec.device)
    return tokens, codec.decode(tokens, (stream.height, stream.width))


@own_defaults()
def guide(
    codec: Codec, other: Backbone, batch: int, size: tuple[int, int] | None = None, candidates: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Compressed guidance: at each step the best of `candidates` random draws for the codec's condition and against `other`
    -> (tokens int64 [B, L], images float32 [B, C, H, W]), which the codec decodes without `other`.

    other       a backbone of the same state without the codec's condition, or with one to go away from, on the same device
    candidates  draws of a view's tokens at each step, of which the one of largest <z, x0_hat - x0_other> is taken. That is
                the paper's <z, eps_other - eps_hat>, since eps = (y - x0) / sigma. 1 is `generate`

    Size, seed and draws are as in `generate`; the tokens of a codebook start are drawn. Raises SpecError for a batch or
    candidates below 1, BackboneError where `other` does not take the codec's states and levels.
    """
    if candidates < 1:
        raise SpecError(f"guidance chooses among at least 1 candidate, not {candidates}")
    stream, generator = _begin(codec, batch, size, seed)
    _check_other(codec, other, stream)

    def choose(segment: Segment, x0_hat: Tensor) -> Tensor:
        best = _drawn(stream, segment, batch, generator).to(codec.device)
        if segment.step_index in (StepIndex.CONDITION, StepIndex.START) or candidates == 1:
            return best
        towards = x0_hat - stream.views(other(*seen[:2])).to(x0_hat.device)
        block = torch.cat(
            [torch.arange(stream.blocks).repeat_interleave(run.count // stream.blocks) for run in segment.runs]
        )
        block, highest = block.to(codec.device), _along(codec, stream, segment, best, towards)
        for _ in range(candidates - 1):
            tokens = _drawn(stream, segment, batch, generator).to(codec.device)
            score = _along(codec, stream, segment, tokens, towards)
            best = torch.where((score > highest)[:, block], tokens, best)
            highest = torch.maximum(score, highest)
        return best

    with _watched(codec.backbone) as seen:
        return _recorded(codec, stream, batch, choose)


@own_defaults()
def restore(
    codec: Codec, observed: Tensor, operator: Operator, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Zero-shot restoration: of all codewords of a step the one that explains best what was observed, argmin over k of
    |observed - A(x0_hat + sigma_t z_k)|^2 -> (tokens int64 [B, L], images float32 [B, C, H, W]).

    observed  float [B, ...]: A of the images [B, C, H, W] that are sought, in [-1, 1], perhaps with noise
    operator  A: linear, on one image or several, such as `downsample(2)`; nothing checks that it is linear
    size      (H, W) of the images sought, default `codec.default_size`

    sigma_t is the standard deviation of the step's noise in the paper's variance-preserving x_t. The tokens of a codebook
    start are chosen the same way. A step costs as many codewords and A as the vocabulary has values. Raises SpecError
    unless each step spends one token of at most 4096 values and the backbone works on pixels, ImageError where `observed`
    is not what A makes of such images.
    """
    stream = codec.stream(*(size or codec.default_size))
    _check_restore(codec, stream)
    made = operator(torch.zeros(1, codec.backbone.channels, stream.height, stream.width, device=codec.device))
    if not observed.is_floating_point() or observed.shape[1:] != made.shape[1:] or not len(observed):
        shape = ", ".join(map(str, made.shape[1:]))
        raise ImageError(
            f"of images of {stream.height} x {stream.width} the operator observes float [B, {shape}], not "
            f"{observed.dtype} {list(observed.shape)}"
        )
    if not torch.isfinite(observed).all():
        raise ImageError("what was observed must be finite")
    observed = observed.to(codec.device, torch.float32)

    def of(views: Tensor) -> Tensor:
        """A of states given as views, [n, numbers observed]."""
        return operator(stream.join(views)[:, :, : stream.height, : stream.width]).flatten(1)

    def choose(segment: Segment, x0_hat: Tensor) -> Tensor:
        missing = observed.flatten(1) - of(x0_hat)
        sigma_t, costs = _sigma_t(codec, segment), []
        for some in torch.arange(segment.runs[0].vocab_size, device=codec.device)[:, None].split(
            max(1, CHUNK // stream.dims)
        ):
            az = sigma_t * of(_noise(codec, stream, segment, some))
            costs.append(az.square().sum(1) - 2 * missing @ az.T)  # |missing - az|^2 without what is the same for all
        return torch.cat(costs, 1).argmin(1, keepdim=True)

    return _recorded(codec, stream, len(observed), choose)


@own_defaults()
def edit(source: Codec, target: Codec, images: Tensor, range: Range | None = None) -> Tensor:
    """Editing by replay: tokens chosen under the condition of `source`, decoded under that of `target`; images uint8 or
    float32 [B, C, H, W] -> float32 [B, C, H, W]. `range` is as of `Codec.encode`.

    Raises CodecMismatchError where more than the backbone differs, and what `Codec.encode` raises.
    """
    theirs = target.spec
    if replace(source.spec, backbone=theirs.backbone, fingerprint=theirs.fingerprint) != theirs:
        raise CodecMismatchError(
            "an edit replays tokens: give two codecs of the same schedule, codebook, rule and solver, "
            "which differ in the backbone only"
        )
    tokens, size = source.encode(images, range=range), (images.shape[2], images.shape[3])
    if source.stream(*size) != target.stream(*size):
        raise CodecMismatchError(
            f"backbones {source.backbone.name!r} and {target.backbone.name!r} have other states: an "
            "edit needs two conditions of one model"
        )
    return target.decode(tokens.to(target.device), size)


# ---- linear operators: images [B, C, H, W] in [-1, 1] -> what is observed ----------------------------------------------
@own_defaults()
def downsample(factor: int) -> Operator:
    """Means of blocks of factor x factor pixels, [B, C, H / factor, W / factor]: its inverse is super-resolution.

    Raises SpecError for a factor below 1, on application ImageError where it does not divide height and width."""
    if factor < 1:
        raise SpecError(f"a factor is at least 1, not {factor}")

    def apply(images: Tensor) -> Tensor:
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise ImageError(f"{images.shape[-2]} x {images.shape[-1]} pixels are no multiples of {factor}: crop the image")
        return F.avg_pool2d(images, factor)

    return apply


@own_defaults()
def grey() -> Operator:
    """Luma with the weights of ITU-R Rec. 601 (.299, .587, .114), of gamma-coded R, G, B as they are, [B, 1, H, W]: its
    inverse is colourisation. On application raises ImageError unless there are 3 channels."""

    def apply(images: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise ImageError(f"grey takes RGB images [B, 3, H, W], not {list(images.shape)}")
        return (images * images.new_tensor(REC601).view(3, 1, 1)).sum(1, keepdim=True)

    return apply


@own_defaults()
def blur(kernel: float | Tensor) -> Operator:
    """Each channel correlated with a kernel, its edges reflected, [B, C, H, W]: its inverse is deblurring.

    kernel  float [h, w] of odd sides, or a number: the standard deviation, in pixels, of a Gaussian cut at three of them

    Raises SpecError for another kernel, on application ImageError where it reaches across the whole image."""
    if isinstance(kernel, Tensor):
        if kernel.ndim != 2 or not all(n % 2 for n in kernel.shape):
            raise SpecError(f"a kernel is [h, w] with odd sides, not {list(kernel.shape)}")
        factors, (bottom, right) = [kernel], (n // 2 for n in kernel.shape)
    elif not 0 < kernel < math.inf:
        raise SpecError(f"the standard deviation of a blur must be above 0, not {kernel}")
    else:
        bottom = right = math.ceil(3 * kernel)
        line = torch.exp(-0.5 * (torch.arange(-right, right + 1) / kernel) ** 2)
        line = line / line.sum()
        factors = [line[:, None], line[None]]  # one axis after the other, which is much faster

    def apply(images: Tensor) -> Tensor:
        c, height, width = images.shape[1:]
        if bottom >= height or right >= width:
            raise ImageError(f"a blur that reaches {bottom} x {right} pixels cannot be reflected in {height} x {width}")
        out = F.pad(images, (right, right, bottom, bottom), mode="reflect")
        for weights in factors:
            out = F.conv2d(out, weights.to(images).expand(c, 1, -1, -1), groups=c)
        return out

    return apply


# ---- what the modes share ----------------------------------------------------------------------------------------------
def _begin(codec: Codec, batch: int, size: tuple[int, int] | None, seed: int) -> tuple[Stream, torch.Generator]:
    if batch < 1:
        raise SpecError(f"a batch is at least 1 image, not {batch}")
    return codec.stream(*(size or codec.default_size)), torch.Generator().manual_seed(seed)


def _drawn(stream: Stream, segment: Segment, batch: int, generator: torch.Generator) -> Tensor:
    """Uniform tokens of one step, int64 [B, T] on the CPU. For rule `top` uniform sets: distinct atoms, ascending."""
    parts = []
    for run in segment.runs:
        if not run.subset:
            parts.append(torch.randint(run.vocab_size, (batch, run.count), generator=generator))
            continue
        sets = batch * run.count // run.subset
        atoms = [torch.randperm(run.vocab_size // 2, generator=generator)[: run.subset].sort()[0] for _ in range(sets)]
        signs = torch.randint(2, (batch, run.count), generator=generator)
        parts.append(2 * torch.stack(atoms).view(batch, run.count) + signs)
    return torch.cat(parts, 1)


def _noise(codec: Codec, stream: Stream, segment: Segment, tokens: Tensor) -> Tensor:
    """z of the tokens of one step: int64 [n, T] -> float32 [n, U, D]."""
    rule = codec.start_rule if segment.step_index == StepIndex.START else codec.rule
    return rule.noise(tokens, (stream.blocks, stream.dims), segment.budget, segment.step_index)


def _along(codec: Codec, stream: Stream, segment: Segment, tokens: Tensor, towards: Tensor) -> Tensor:
    """<z(tokens), towards> of each view, [B, U]."""
    return (_noise(codec, stream, segment, tokens) * towards).sum(-1)


def _recorded(codec: Codec, stream: Stream, batch: int, choose: Chooser) -> tuple[Tensor, Tensor]:
    """A walk, (all tokens that were chosen, the images it ends in)."""
    chosen = [torch.zeros(batch, 0, dtype=torch.int64, device=codec.device)]

    def keep(segment: Segment, x0_hat: Tensor) -> Tensor:
        chosen.append(choose(segment, x0_hat))
        return chosen[-1]

    images = codec.walk(stream, batch, keep)
    return torch.cat(chosen, 1), images


@contextmanager
def _watched(backbone: Backbone) -> Iterator[list]:
    """The arguments [y, sigma, ...] of the backbone's last call, kept up to date inside the `with` block: `walk` tells
    `choose` x0_hat only. One walk of a backbone at a time."""
    seen: list = []
    hook = backbone.register_forward_pre_hook(lambda _, given: seen.__setitem__(slice(None), given))
    try:
        yield seen
    finally:
        hook.remove()


def _sigma_t(codec: Codec, segment: Segment) -> float:
    """Standard deviation of what the tokens inject, in the paper's x_t = (x0 + sigma eps) / sqrt(1 + sigma^2)."""
    if segment.step_index == StepIndex.START:
        sigma = codec.spec.sigma_first
        return 1.0 if sigma == math.inf else sigma / math.hypot(1, sigma)
    step = codec.spec.schedule[segment.step_index]
    return step.sigma_up / math.hypot(1, step.sigma_next)


def _check_other(codec: Codec, other: Backbone, stream: Stream) -> None:
    fits = other.size in (None, stream.padded) and other.padded(*stream.padded) == stream.padded
    if not fits or other.state_shape(*stream.padded) != stream.state:
        raise BackboneError(
            f"backbone {other.name!r} has no states of {list(stream.state)} as {codec.backbone.name!r} has: "
            "guide between two conditions of one model"
        )
    for sigma in (step.sigma for step in codec.spec.schedule if step.budget):
        if not other.pure_noise if sigma == math.inf else other.round_sigma(sigma) != sigma:
            raise BackboneError(
                f"backbone {other.name!r} has no level sigma = {sigma} of the codec's: guide between "
                "two conditions of one model"
            )


def _check_restore(codec: Codec, stream: Stream) -> None:
    if codec.spec.condition:
        raise SpecError("a condition is made of the whole image, which restoring does not have: use a codec without one")
    for segment in stream.segments:
        if segment.count != 1 or segment.runs[0].vocab_size > MOST:
            raise SpecError(
                f"restoring tries every codeword: a step spends one token of at most {MOST} values, not "
                f"{segment.count} of {segment.runs[0].vocab_size}; use budget=1, start_budget=0, vocab_size={MOST}"
            )
    pixels = (codec.backbone.channels, *stream.padded)
    if stream.state != pixels or not codec.backbone.on_pixels:
        raise SpecError(
            f"backbone {codec.backbone.name!r} works in a latent space, where what was observed of the image "
            "says nothing linear: restore with a backbone of pixels"
        )
