"""What a codec does with images of one size: where its tokens lie in the stream, and how a state is cut in views."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from noisebook.codebook import START_STEP
from noisebook.format.runs import Run
from noisebook.spec.spec import CONDITION, START


@dataclass(frozen=True)
class Tokens:
    """The tokens of one step (`START_STEP`: of the codebook start; `CONDITION`: the condition's) in the stream: `offset`
    places in, in these runs."""

    step: int
    bins: int  # what each view spends, see `Step.bins`
    runs: tuple[Run, ...]
    offset: int

    @property
    def count(self) -> int:
        """Tokens T of one image."""
        return sum(run.count for run in self.runs)


@dataclass(frozen=True)
class Layout:
    """What every position of a token tensor [B, L] means; int64 [L] each. `step` is -1 for tokens of the start, -2 for
    those of the condition, each a unit of its own.

    `unit` is the block of the image (rule `poisson`: the chunk), `bin` counts within it. For coefficients of rule `pursuit`
    `bin` goes on from the atoms."""

    step: Tensor
    unit: Tensor
    bin: Tensor
    vocabulary: Tensor

    def __len__(self) -> int:
        return len(self.step)

    @property
    def bits(self) -> float:
        """log2 of the number of token tensors; `Plan.packed_bits` says what a file spends."""
        return float(self.vocabulary.double().log2().sum())


@dataclass(frozen=True)
class Plan:
    """A codec at one image size: the padded size, the shape of the state, its views and where each token run lies."""

    height: int
    width: int
    padded: tuple[int, int]
    state: tuple[int, int, int]  # [C, h, w]
    blocks: tuple[int, int]  # rows, columns
    tokens: tuple[Tokens, ...]  # of the condition, the start and the steps, of those that have any
    chunked: bool  # units of the layout are chunks, not blocks
    steps: int | None = None  # so many alone of the schedule; None: all

    @property
    def units(self) -> int:
        return self.blocks[0] * self.blocks[1]

    @property
    def dims(self) -> int:
        """Dimensions D of one view."""
        return math.prod(self.state) // self.units

    @property
    def length(self) -> int:
        """Tokens of one image."""
        return sum(some.count for some in self.tokens)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of the stream, as `container.pack` takes them."""
        return tuple(run for some in self.tokens for run in some.runs)

    def layout(self) -> Layout:
        rows = []
        for some in self.tokens:
            alone = some.step == CONDITION or (self.chunked and some.step != START_STEP)
            units, first = (some.count if alone else self.units), 0
            for run in some.runs:
                each = max(1, run.count // units)
                unit = torch.arange(run.count) if each * units != run.count else torch.arange(units).repeat_interleave(each)
                unit = unit + first if self.chunked else unit
                step = torch.full_like(unit, START if some.step == START_STEP else some.step)
                place = torch.arange(run.count) % each + (0 if self.chunked else first // units)
                rows.append((step, unit, place, torch.full_like(unit, run.vocabulary)))
                first += run.count
        if not rows:
            return Layout(*torch.zeros(4, 0, dtype=torch.int64).unbind())
        return Layout(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def views(self, state: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, U, D]: blocks in raster order, each flattened as [channel, row, column]."""
        (c, h, w), (r, q) = self.state, self.blocks
        cut = state.reshape(len(state), c, r, h // r, q, w // q)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(state), self.units, self.dims)

    def join(self, views: Tensor) -> Tensor:
        """The inverse of `views`."""
        (c, h, w), (r, q) = self.state, self.blocks
        cut = views.reshape(len(views), r, q, c, h // r, w // q)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(views), c, h, w)
