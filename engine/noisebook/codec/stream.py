"""What a codec does with images of one size: where its tokens lie in the stream, and how a state is cut in views."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.errors import SpecError
from noisebook.format.runs import Run
from noisebook.rules import Rule
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex

MAX_DRAWN_STEPS = 1000  # in which a decoder may draw an image from a condition only


@dataclass(frozen=True)
class Segment:
    """The tokens of one step in the stream (`StepIndex.START`: of the codebook start; `StepIndex.CONDITION`: of the
    condition): `offset` places in, in these runs."""

    step_index: int
    budget: int  # what each view spends, see `Step.budget`
    runs: tuple[Run, ...]
    offset: int
    block: int | None = None  # of a large picture: the only block that these tokens are of

    def of_block(self, block: int, blocks: int) -> "Segment":
        """The tokens of one of all blocks."""
        (run,) = self.runs  # rules whose tokens of a block lie apart take no large picture
        each = run.count // blocks
        return Segment(self.step_index, self.budget, (run._replace(count=each),), self.offset + block * each, block)

    @property
    def count(self) -> int:
        """Tokens T of one image."""
        return sum(run.count for run in self.runs)


@dataclass(frozen=True)
class Layout:
    """What every position of a token tensor [B, L] means; int64 [L] each.

    step_index   of the step, or a `StepIndex`: -1 for tokens of the start, -2 for those of the condition, -3 for those that
                 say at which steps the network runs at a lower resolution
    block        of the image; for rule `poisson` the chunk, for a condition each token by itself
    bin          counts within the block; for coefficients of rule `pursuit` it goes on from the atoms
    vocab_size   values of the token
    """

    step_index: Tensor
    block: Tensor
    bin: Tensor
    vocab_size: Tensor

    def __len__(self) -> int:
        return len(self.step_index)

    @property
    def bits(self) -> float:
        """The sum of log2(vocab_size) over positions; `container.packed_bits` says what a file spends."""
        return float(self.vocab_size.double().log2().sum())


@dataclass(frozen=True)
class Stream:
    """A codec at one image size: the padded size, the shape of the state, its views and where each run of tokens lies."""

    height: int
    width: int
    padded: tuple[int, int]
    state: tuple[int, int, int]  # [C, h, w]
    grid: tuple[int, int]  # rows and columns of blocks
    segments: tuple[Segment, ...]  # of the condition, the start and the steps, where they have tokens
    chunked: bool  # the layout counts chunks, not blocks
    steps: int | None = None  # the first ones of the schedule only; None: all
    tiled: bool = False  # a large picture: the network runs over tiles, and blocks are worked on one by one

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def dims(self) -> int:
        """Dimensions D of one view."""
        return math.prod(self.state) // self.blocks

    @property
    def length(self) -> int:
        """Tokens L of one image."""
        return sum(segment.count for segment in self.segments)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of the stream, as `container.pack` takes them."""
        return tuple(run for segment in self.segments for run in segment.runs)

    def layout(self) -> Layout:
        """The step, block, bin and vocab_size of every position."""
        rows = []
        for segment in self.segments:
            alone = segment.step_index < StepIndex.START or (self.chunked and segment.step_index != StepIndex.START)
            blocks, first = (segment.count if alone else self.blocks), 0
            for run in segment.runs:
                each = max(1, run.count // blocks)
                even = each * blocks == run.count
                block = torch.arange(blocks).repeat_interleave(each) if even else torch.arange(run.count)
                block = block + first if self.chunked else block
                step_index = torch.full_like(block, segment.step_index)
                place = torch.arange(run.count) % each + (0 if self.chunked else first // blocks)
                rows.append((step_index, block, place, torch.full_like(block, run.vocab_size)))
                first += run.count
        if not rows:
            return Layout(*torch.zeros(4, 0, dtype=torch.int64).unbind())
        return Layout(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def views(self, state: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, U, D]: blocks in raster order, each flattened as [channel, row, column]; a copy unless they
        lie so in the state."""
        (c, h, w), (r, q) = self.state, self.grid
        cut = state.reshape(len(state), c, r, h // r, q, w // q)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(state), self.blocks, self.dims)

    def view(self, state: Tensor, block: int) -> Tensor:
        """[1, C, h, w] -> [1, 1, D]: that block as in `views`, a copy unless it lies together in the state."""
        return self._cut_out(state, block).reshape(1, 1, self.dims)

    def put(self, state: Tensor, block: int, view: Tensor) -> None:
        """Writes a block's view [1, 1, D] into the state [1, C, h, w]."""
        place = self._cut_out(state, block)
        place.copy_(view.view(place.shape))

    def _cut_out(self, state: Tensor, block: int) -> Tensor:
        (_, h, w), (r, q) = self.state, self.grid
        top, left = block // q * (h // r), block % q * (w // q)
        return state[:, :, top : top + h // r, left : left + w // q]

    def join(self, views: Tensor) -> Tensor:
        """The inverse of `views`."""
        (c, h, w), (r, q) = self.state, self.grid
        cut = views.reshape(len(views), r, q, c, h // r, w // q)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(views), c, h, w)


MOST = 1 << 24  # dimensions of a block


def spec_for(spec: CodecSpec, backbone: Backbone, height: int, width: int) -> CodecSpec:
    """The specification itself, or, where a block of such an image would have more than MOST dimensions, `CodecSpec.cut`: in
    the fewest equal blocks, side by side unless that pads the image by more than a part in 32. Raises SpecError where the
    codec takes no image of that size."""
    _, state = _cut(spec, backbone, height, width)
    dims = math.prod(state)
    if dims <= MOST * spec.blocks:
        return spec
    if spec.blocks > 1 or spec.resolutions:
        raise SpecError(
            f"a block of an image of {height} x {width} has more than 2^24 dimensions: use more rows and columns"
        )
    spec.cut(1, 2)  # raises where the codec takes no large picture
    for blocks in range(-(-dims // MOST), 1 << 16):
        found = []
        for grid in _grids(blocks):
            try:
                cut = spec.cut(*grid)
                size = math.prod(_cut(cut, backbone, height, width)[1])
            except SpecError:  # no equal blocks
                continue
            if size <= MOST * blocks:
                found.append((size > dims + dims // 32, size if size > dims + dims // 32 else 0, -grid[1], cut))
        if found:
            return min(found, key=lambda one: one[:3])[3]
    raise SpecError(f"an image of {height} x {width} cannot be cut into blocks of 2^24 dimensions")


def _grids(blocks: int) -> Iterator[tuple[int, int]]:
    for rows in range(1, blocks + 1):
        if blocks % rows == 0:
            yield rows, blocks // rows


def stream_for(spec: CodecSpec, backbone: Backbone, rule: Rule, start_rule: Rule, height: int, width: int) -> Stream:
    """What a codec does with images of that size. Raises SpecError where tokens or blocks do not fit it."""
    spec = spec_for(spec, backbone, height, width)
    padded, state = _cut(spec, backbone, height, width)
    dims, offset = math.prod(state) // spec.blocks, 0
    segments: list[Segment] = []
    if runs := spec.resolution_runs():
        segments.append(Segment(StepIndex.RESOLUTION, 0, runs, 0))
        offset = segments[-1].count
    if runs := spec.condition_runs(height, width):
        if spec.condition_runs(*padded) != runs:
            raise SpecError(f"blocks pad an image of {height} x {width} so that it has other condition tokens: use 1 x 1")
        segments.append(Segment(StepIndex.CONDITION, 0, runs, 0))
        offset = segments[-1].count
    budgets, start = spec.budgets_for(height, width)
    for step_index, budget in enumerate([start, *budgets], StepIndex.START):
        if budget:
            begins = step_index == StepIndex.START
            (start_rule if begins else rule).check_view(budget, dims)  # raises where it does not fit
            runs = spec.start_runs(budget) if begins else spec.step_runs(budget)
            segments.append(Segment(step_index, budget, runs, offset))
            offset += segments[-1].count
    return Stream(
        height, width, padded, state, (spec.rows, spec.columns), tuple(segments), rule.chunked, None, spec.resolutions > 0
    )


def _cut(spec: CodecSpec, backbone: Backbone, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """(the padded size, the state's shape [C, h, w]): the smallest that holds the image and is cut in equal blocks."""
    padded = backbone.padded(height, width)
    state = backbone.state_shape(*padded)
    for axis, (count, name) in enumerate(((spec.rows, "rows"), (spec.columns, "columns"))):
        for _ in range(count):
            if state[1 + axis] % count == 0:
                break
            padded = backbone.padded(padded[0] + (axis == 0), padded[1] + (axis == 1))
            state = backbone.state_shape(*padded)
        else:
            raise SpecError(f"an image of {height} x {width} cannot be cut into {count} {name} of equal size")
    return padded, state


def shortened(stream: Stream, spec: CodecSpec, steps: int | None) -> Stream:
    """What a decode of the first `steps` steps reads; None: all of the stream. Raises SpecError for more than there are."""
    if steps is None:
        return stream
    most = len(spec.schedule) or MAX_DRAWN_STEPS
    if not 1 <= steps <= most:
        raise SpecError(f"steps must be from 1 to {most}, not {steps}")
    kept = tuple(segment for segment in stream.segments if segment.step_index < steps)
    return replace(stream, segments=kept, steps=steps)
