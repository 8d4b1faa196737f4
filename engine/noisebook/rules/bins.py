"""Rule `bins`, the default: one signed atom in each of M bins. Tokens of fixed length without a sort or an entropy coder."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisebook.rules.base import Rule

if TYPE_CHECKING:
    from torch import Tensor

SPARSE = 40  # dimensions a bit beyond which atoms hardly disturb each other, and `refined` gains less than a percent
GROUPS = 4  # of bins that `refined` chooses again, one group after the other


@dataclass(frozen=True)
class Bins(Rule):
    """A budget of M bins. `effort` is the number of passes of `refined` after the first choice, when encoding."""

    unit = "bins"
    power_of_two_budget = True
    whole_bits = True

    def select(self, residual: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float) -> "Tensor":
        tokens = self.book.select(residual, budget, step_index)
        bits = budget * (self.book.vocab_size.bit_length() - 1)
        for _ in range(self.effort if bits * SPARSE > residual.shape[-1] else 0):
            tokens = refined(self.book, residual, tokens, step_index)
        return tokens.flatten(1)

    def noise(self, tokens: "Tensor", views: tuple[int, int], budget: int, step_index: int) -> "Tensor":
        return self.book.noise(tokens.unflatten(1, (views[0], budget)), views[1], step_index)

    def backtrace(
        self, y: "Tensor", x0_hat: "Tensor", tokens: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float
    ) -> "Tensor":
        tokens = tokens.unflatten(1, (y.shape[1], budget))
        return self.book.backtrace(y, x0_hat, tokens, keep, sigma_up, step_index)


def refined(book: Any, residual: "Tensor", tokens: "Tensor", step_index: int) -> "Tensor":
    """Chooses the tokens of each quarter of the bins again, given all others: float32 [B, U, D], int64 [B, U, M] -> the
    same.

    Bins are chosen as if each stood by itself, but atoms of different bases are not orthogonal. For z the noise of
    all tokens and c = <z, u> / D its cosine with the residual's direction u, the cosine grows most along u - c z', z'
    the noise of the tokens that stay, in its share sqrt(m / M) of the length (docs/findings/refining-tokens.md)."""
    import torch

    views, bins = residual.shape[-1], tokens.shape[-1]
    groups = min(GROUPS, bins)
    if groups < 2:
        return tokens
    u = residual / residual.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
    pool, places = book.pooled(bins, views)
    tokens = tokens.clone()
    for first in range(groups):
        cosine = (book.noise(tokens, views, step_index) * u).mean(-1, keepdim=True)
        placed = places(tokens).unflatten(-1, (-1, groups))
        others = torch.cat([placed[..., :first], placed[..., first + 1 :]], -1).flatten(-2)
        rest = pool.noise(others, views, step_index, pooled=True)
        missing = u - cosine * math.sqrt(1 - 1 / groups) * rest
        tokens[..., first::groups] = book.select(missing, bins, step_index)[..., first::groups]
    return tokens
