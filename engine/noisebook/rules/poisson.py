"""Rule `poisson` (DiffC, arXiv 2501.09815): a step's noise is a sample of N(mu, I), mu what the posterior of the step
wants."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisebook.errors import SpecError
from noisebook.rules.base import Rule, RunTuple

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_PADDING = 2  # index bits of a chunk beyond its bits of divergence (DiffC)
EXPONENT = 4096  # Zipf exponents are whole multiples of 1 / 4096, as in noisebook.format.entropy


@dataclass(frozen=True)
class Poisson(Rule):
    """A budget of bits of Kullback-Leibler divergence. The sample is sent by the Poisson functional representation, argmin
    over k of log T_k - <z_k, mu>, in chunks of shuffled dimensions.

    A step's bits of divergence are part of the specification, so that both ends cut the same chunks whatever the image.
    """

    unit = "bits"
    fixed_length = False
    chunked = True

    @classmethod
    def check_spec(cls, vocab_size: int, coefficient_bits: int, budgets: Sequence[int], scaled: bool, blocks: int) -> None:
        super().check_spec(vocab_size, coefficient_bits, budgets, scaled, blocks)
        if blocks != 1:
            raise SpecError("rule poisson cuts its own chunks: rows and columns must be 1")
        if vocab_size & (vocab_size - 1) or not 1 << CHUNK_PADDING + 2 <= vocab_size <= 1 << 25:
            raise SpecError(f"rule poisson needs a power of two from 16 to 2^25 as vocab_size, not {vocab_size}")

    @classmethod
    def runs(cls, budget: int, blocks: int, vocab_size: int, coefficient_bits: int) -> tuple[RunTuple, ...]:
        """The chunks of a step of `budget` bits, none with more index bits than a vocab_size of 2^(c + 1) allows, c: one run
        for each size, the larger first. m = ceil(budget / (c - 2)) chunks share budget + 2 m index bits as evenly as they
        can (DiffC)."""
        chunks = -(-budget // (vocab_size.bit_length() - 2 - CHUNK_PADDING))
        total = budget + CHUNK_PADDING * chunks
        bits, larger = divmod(total, chunks)
        sizes = ((larger, bits + 1), (chunks - larger, bits))
        return tuple((count, 1 << c, 0, zipf_exponent(c * budget / total)) for count, c in sizes if count)

    def _sizes(self, budget: int) -> tuple[int, ...]:
        """Values of the index of each chunk."""
        return tuple(size for count, size, _, _ in self.runs(budget, 1, self.book.vocab_size, 0) for _ in range(count))

    def _book(self, sizes: tuple[int, ...]) -> Any:
        return self.book.with_vocab_size(2 * max(sizes))

    def check_view(self, budget: int, dims: int) -> None:
        chunks = sum(count for count, *_ in self.runs(budget, 1, self.book.vocab_size, 0))
        if chunks > dims:
            raise SpecError(
                f"{budget} bits of divergence cut a view of {dims} dimensions in {chunks} chunks, some of them "
                "empty: use fewer bits per step"
            )

    def select(self, residual: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float) -> "Tensor":
        from torch.nn import functional as F

        sizes = self._sizes(budget)
        places, _ = self.book.chunk_places(residual.shape[-1], len(sizes), step_index, residual.device)
        mu = residual[:, 0] * ((1 - keep) / sigma_up)
        chunks = F.pad(mu, (0, 1))[:, places]  # place -1 is the padding
        bias = self.book.arrival_bias(sizes, step_index, residual.device)
        return self._book(sizes).biased(chunks, bias, step_index)[..., 0] >> 1

    def noise(self, tokens: "Tensor", views: tuple[int, int], budget: int, step_index: int) -> "Tensor":
        sizes = self._sizes(budget)
        places, order = self.book.chunk_places(views[1], len(sizes), step_index, tokens.device)
        chunks = self._book(sizes).noise(2 * tokens[..., None], places.shape[1], step_index, pooled=True)
        return chunks.flatten(1)[:, None, order]


def zipf_exponent(divergence: float) -> int:
    """The exponent s = 1 + 1 / (I + log2(e) / e + 1) for indices of the Poisson functional representation of `divergence`
    bits (Li and El Gamal 2018, theorem 1), in units of 1 / EXPONENT."""
    return round((1 + 1 / (divergence + math.log2(math.e) / math.e + 1)) * EXPONENT)
