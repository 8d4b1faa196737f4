"""Rule `bins`, the default: one signed atom in each of M bins. Tokens of fixed length without a sort or an entropy coder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from noisebook.rules.base import Rule

if TYPE_CHECKING:
    from torch import Tensor

SPARSE = 40  # dimensions a bit beyond which atoms hardly disturb each other, and `refined` gains less than a percent


@dataclass(frozen=True)
class Bins(Rule):
    """A budget of M bins. `effort`: how often all tokens are chosen again (`refined` of the codebook) when encoding, where
    there are enough of them, see `passes`."""

    unit = "bins"
    power_of_two_budget = True
    whole_bits = True
    stands_alone = True

    def select(self, residual: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float) -> "Tensor":
        tokens = self.book.select(residual, budget, step_index)
        for _ in range(self.passes(budget, residual.shape[-1])):
            tokens = self.book.refined(residual, tokens, step_index)
        return tokens.flatten(1)

    def passes(self, budget: int, dims: int) -> int:
        """How often the tokens of `budget` bins are chosen again in a view of `dims` dimensions: `effort` times, or never
        where they have no more than one bit for `SPARSE` dimensions."""
        bits = budget * (self.book.vocab_size.bit_length() - 1)
        return self.effort if bits * SPARSE > dims else 0

    def noise(self, tokens: "Tensor", views: tuple[int, int], budget: int, step_index: int) -> "Tensor":
        return self.book.noise(tokens.unflatten(1, (views[0], budget)), views[1], step_index)

    def backtrace(
        self, y: "Tensor", x0_hat: "Tensor", tokens: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float
    ) -> "Tensor":
        tokens = tokens.unflatten(1, (y.shape[1], budget))
        return self.book.backtrace(y, x0_hat, tokens, keep, sigma_up, step_index)
