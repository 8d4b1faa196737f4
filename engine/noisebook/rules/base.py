"""What every selection rule answers. Which tokens an encoder chooses is its own business: a decoder takes any.

Shapes: B images, U blocks, D dimensions of a block's view, T tokens of one step of one image. A rule sees views [B,
U, D] and tokens [B, T], in the order of `Rule.runs`. It is handed tensors and a codebook, and imports neither: the
checks of a specification need no torch.

`select`, `noise` and `backtrace` may be recorded as part of a CUDA graph: they read nothing back from the device and copy
nothing to it from the host."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from noisebook.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

EFFORT = 1  # how often an encoder chooses the tokens of a step again, unless asked otherwise; the only place of it
RunTuple = tuple[int, int, int, int]  # (count, vocab_size, subset, zipf), see noisebook.format.runs.Run


@dataclass(frozen=True)
class Rule:
    """Base of all rules; the class attributes and the methods up to `check_view` describe it, the others do its work.

    book              the codebook, a `noisebook.codebook.Codebook`
    effort            of encoders only: how often the tokens of a step are chosen again, given the others (rule `bins`)
    coefficient_bits  of a rule that codes coefficients
    """

    unit: ClassVar[str]  # what a step's budget counts
    power_of_two_budget: ClassVar[bool] = False  # budgets are powers of two, or are rounded to them
    fixed_length: ClassVar[bool] = True  # all images of one size have payloads of one length
    whole_bits: ClassVar[bool] = False  # each token packs by itself, in whole bits where its vocab_size is a power of two
    chunked: ClassVar[bool] = False  # tokens belong to chunks of shuffled dimensions, not to blocks
    stands_alone: ClassVar[bool] = False  # a token is one atom whatever the others are, and its lowest bit is the sign

    book: Any
    effort: int = EFFORT
    coefficient_bits: int = 0

    @classmethod
    def check_spec(cls, vocab_size: int, coefficient_bits: int, budgets: Sequence[int], scaled: bool, blocks: int) -> None:
        """Raises SpecError where the numbers of a specification do not suit the rule. `scaled`: budgets are for an image
        of `scale_pixels` pixels, so that the largest is not known."""
        if coefficient_bits:
            raise SpecError("coefficient_bits are for rule pursuit only")

    @classmethod
    def runs(cls, budget: int, blocks: int, vocab_size: int, coefficient_bits: int) -> tuple[RunTuple, ...]:
        """The runs of tokens of one step of one image, all blocks together. Raises SpecError for a budget that cannot be."""
        return ((budget * blocks, vocab_size, 0, 0),)

    def at(self, block: int) -> Self:
        """The same for views whose first block has that number."""
        return replace(self, book=self.book.at(block))

    def check_view(self, budget: int, dims: int) -> None:
        """Raises SpecError where a step of that budget does not fit views of `dims` dimensions."""
        self.book.shape(budget if self.power_of_two_budget else 1, dims)

    def select(self, residual: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float) -> "Tensor":
        """float32 [B, U, D] -> tokens int64 [B, T] of that step, whose noise will have standard deviation `sigma_up`, over
        the share `keep` of the old noise (0 where the step begins at pure noise)."""
        raise NotImplementedError

    def noise(self, tokens: "Tensor", views: tuple[int, int], budget: int, step_index: int) -> "Tensor":
        """z(tokens): int64 [B, T] -> float32 [B, U, D] of root mean square 1; `views` is (U, D)."""
        raise NotImplementedError

    def backtrace(
        self, y: "Tensor", x0_hat: "Tensor", tokens: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float
    ) -> "Tensor":
        """x0_hat + keep (y - x0_hat) + sigma_up z(tokens), all views float32 [B, U, D]. A rule with a fused update overrides
        it."""
        noise = self.noise(tokens, (y.shape[1], y.shape[2]), budget, step_index)
        return x0_hat + keep * (y - x0_hat) + sigma_up * noise
