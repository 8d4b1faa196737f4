"""Rule `top` (Turbo-DDCM, arXiv 2511.06424): the M atoms of largest |score| of the whole vocabulary, with their signs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noisebook.errors import SpecError
from noisebook.rules.base import Rule, RunTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Top(Rule):
    """A budget of M atoms. Tokens stand in ascending order, so that a set of them packs as its rank and the signs."""

    unit = "atoms"

    @classmethod
    def check_spec(cls, vocab_size: int, coefficient_bits: int, budgets: Sequence[int], scaled: bool, blocks: int) -> None:
        super().check_spec(vocab_size, coefficient_bits, budgets, scaled, blocks)
        if not scaled and budgets:
            _check(max(budgets), vocab_size)

    @classmethod
    def runs(cls, budget: int, blocks: int, vocab_size: int, coefficient_bits: int) -> tuple[RunTuple, ...]:
        _check(budget, vocab_size)
        return ((budget * blocks, vocab_size, budget, 0),)

    def select(self, residual: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float) -> "Tensor":
        return self.book.top(residual, budget, step_index).sort(-1)[0].flatten(1)

    def noise(self, tokens: "Tensor", views: tuple[int, int], budget: int, step_index: int) -> "Tensor":
        return self.book.noise(tokens.unflatten(1, (views[0], budget)), views[1], step_index, pooled=True)

    def backtrace(
        self, y: "Tensor", x0_hat: "Tensor", tokens: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float
    ) -> "Tensor":
        tokens = tokens.unflatten(1, (y.shape[1], budget))
        return self.book.backtrace(y, x0_hat, tokens, keep, sigma_up, step_index, pooled=True)


def _check(atoms: int, vocab_size: int) -> None:
    if atoms > vocab_size // 2:
        raise SpecError(f"{atoms} of {vocab_size // 2} atoms cannot be chosen")
