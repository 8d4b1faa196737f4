"""Codebooks: `select` finds the tokens of a residual, `noise` makes the codeword sum of tokens, on any device.

A codebook is never stored: it follows from (seed, step index, block). Three back ends give the same codewords, bit for
bit, each a module with the functions of `Backend`; `backend` chooses one by the device:

    triton      kernels of noisebook_kernels, for CUDA tensors
    native      the C++ extension, for CPU tensors
    reference   the definition in torch, where the extension could not be built (slow: importing a codec warns)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from noisebook.codebook import native, reference, refining
from noisebook.codebook.reference import NOT_FINITE, next_pow2
from noisebook.errors import SpecError
from noisebook.runtime.native import native as extension


class Backend(Protocol):
    """What a back end's module has. B images, U blocks, D dimensions of a view, M tokens of a block; all tensors are
    contiguous. Choices (`select`, `top`, `biased`) may differ between back ends where scores nearly tie; `noise` is exact.

    kind         `hadamard` or `independent`
    shape        (M, atoms, bases), see `Codebook.shape`; `top` and `biased` take that of one bin
    step_index   as uint32, see `counter`
    block        the number of the first of the U blocks

    On the CPU a residual that is not finite raises ImageError.
    """

    def select(
        self, residual: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
    ) -> Tensor:
        """The best signed atom of every bin: float32 [B, U, D] -> int64 [B, U, M]."""
        ...

    def refined(
        self,
        residual: Tensor,
        tokens: Tensor,
        kind: str,
        shape: tuple[int, int, int],
        step_index: int,
        seed: int,
        block: int = 0,
    ) -> Tensor:
        """Tokens of `select` chosen again, each part of the bins given all others, see refining.py: float32 [B, U, D], int64
        [B, U, M] -> int64 [B, U, M]."""
        ...

    def top(
        self,
        residual: Tensor,
        count: int,
        kind: str,
        shape: tuple[int, int, int],
        step_index: int,
        seed: int,
        block: int = 0,
    ) -> Tensor:
        """The `count` signed atoms of largest |score|, best first: float32 [B, U, D] -> int64 [B, U, count]."""
        ...

    def biased(
        self,
        residual: Tensor,
        bias: Tensor,
        kind: str,
        shape: tuple[int, int, int],
        step_index: int,
        seed: int,
        block: int = 0,
    ) -> Tensor:
        """argmax over atoms k of score_k + bias_k, token 2 k: float32 [B, U, D], [U, bases atoms] -> int64 [B, U, 1]."""
        ...

    def arrival_bias(self, sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
        """-log T_k of the arrival times of each chunk's indices, -inf from its size on: float32 [U, K], K the largest size.

        sizes  of the U chunks, at most two numbers, the larger first"""
        ...

    def chunk_places(
        self, dims: int, chunks: int, step_index: int, seed: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(the dimension at each place of each chunk, int64 [U, W], -1: padding; where each dimension is among all those
        places, int64 [D]): the same on every device."""
        ...

    def noise(
        self, tokens: Tensor, d: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
    ) -> Tensor:
        """z(tokens): int64 [B, U, M] -> float32 [B, U, d]. Tokens of one bin may be any number."""
        ...

    def backtrace(
        self,
        y: Tensor,
        x0_hat: Tensor,
        tokens: Tensor,
        keep: float,
        sigma_up: float,
        kind: str,
        shape: tuple[int, int, int],
        step_index: int,
        seed: int,
        block: int = 0,
    ) -> Tensor:
        """x0_hat + keep (y - x0_hat) + sigma_up z(tokens): float32 [B, U, D]."""
        ...


def backend(device: torch.device) -> Backend:
    """The back end that serves tensors of a device. Nothing else chooses."""
    if device.type == "cuda":
        from noisebook.codebook import triton  # other machines may have no Triton

        return triton
    return reference if extension() is None else native


def counter(step_index: int) -> int:
    """The word of the random streams' counter that stands for a step: its index as uint32; -1 is the start."""
    return step_index & 0xFFFFFFFF


@dataclass(frozen=True)
class Codebook:
    """One kind of codebook (`hadamard` or `independent`) with its vocab_size V and seed. Shapes: B images, U blocks, D
    dimensions of a view, M bins.

    Raises SpecError where V, M and D do not fit together (hadamard: V and M powers of two, M <= P).
    """

    kind: str
    vocab_size: int
    seed: int
    first_block: int = 0  # the number of the first of the blocks that a call is given

    def shape(self, bins: int, d: int) -> tuple[int, int, int]:
        """(bins, atoms of a bin and base, bases); kind `independent` has one base."""
        p = next_pow2(d)
        if not 1 <= bins <= p or bins & (bins - 1):
            raise SpecError(f"{bins} bins do not fit a view of {d} dimensions: use a power of two up to {p}")
        if self.kind == "independent":
            if bins * (self.vocab_size // 2) > 1 << 32:  # the index of a codeword is one word of the counter
                raise SpecError(f"{bins} bins of {self.vocab_size // 2} independent atoms are more than 2^32: use fewer")
            return bins, self.vocab_size // 2, 1
        atoms = min(self.vocab_size // 2, p // bins)
        return bins, atoms, self.vocab_size // (2 * atoms)

    def _where(self, bins: int, d: int, step_index: int) -> tuple[Any, ...]:
        """What every function of a back end takes last: (kind, shape, step index as uint32, seed), and the number of the
        first block where that is not 0."""
        where = self.kind, self.shape(bins, d), counter(step_index), self.seed
        return (*where, self.first_block) if self.first_block else where

    def at(self, block: int) -> "Codebook":
        """The same for calls whose first block has that number."""
        return replace(self, first_block=block)

    def select(self, residual: Tensor, bins: int, step_index: int) -> Tensor:
        """The best signed atom of every bin: float32 [B, U, D] -> int64 [B, U, M] in [0, V).

        A residual that is not finite raises ImageError on the CPU; on CUDA, which must not wait for the answer, the
        caller checks once at the end (`Codec` does).
        """
        where = self._where(bins, residual.shape[-1], step_index)
        return backend(residual.device).select(residual.contiguous(), *where)

    def refined(self, residual: Tensor, tokens: Tensor, step_index: int) -> Tensor:
        """Tokens of `select` chosen again, each quarter of the bins given all others (refining.py): float32 [B, U, D],
        int64 [B, U, M] -> int64 [B, U, M]. Raises what `select` does."""
        where = self._where(tokens.shape[-1], residual.shape[-1], step_index)
        return backend(residual.device).refined(residual.contiguous(), tokens.contiguous(), *where)

    def top(self, residual: Tensor, count: int, step_index: int) -> Tensor:
        """The `count` signed atoms of largest |score| of the whole vocabulary, best first; ties to the smaller atom
        (Turbo-DDCM): float32 [B, U, D] -> int64 [B, U, count] in [0, V). Raises SpecError for more than V / 2 atoms."""
        if not 1 <= count <= self.vocab_size // 2:
            raise SpecError(f"{count} of {self.vocab_size // 2} atoms cannot be chosen")
        where = self._where(1, residual.shape[-1], step_index)
        return backend(residual.device).top(residual.contiguous(), count, *where)

    def biased(self, residual: Tensor, bias: Tensor, step_index: int) -> Tensor:
        """argmax over atoms k of score_k + bias_k, unsigned (token 2 k): float32 [B, U, D], bias float32 [U, V / 2] ->
        int64 [B, U, 1]. With residual mu and bias -log T it is the Poisson functional representation (DiffC)."""
        if bias.shape != (residual.shape[1], self.vocab_size // 2):
            raise SpecError(f"bias must be [{residual.shape[1]}, {self.vocab_size // 2}], not {list(bias.shape)}")
        where = self._where(1, residual.shape[-1], step_index)
        return backend(residual.device).biased(residual.contiguous(), bias.contiguous(), *where)

    def scores(self, residual: Tensor, step_index: int) -> Tensor:
        """<z_k, r> of every unsigned atom of the whole vocabulary: float32 [B, U, D] -> [B, U, V / 2]. By the definition, in
        float64 on the device: for rules that need all scores of a small vocabulary."""
        return reference.scores(residual, *self._where(1, residual.shape[-1], step_index))

    def pooled(self, bins: int, d: int) -> "tuple[Codebook, Callable[[Tensor], Tensor]]":
        """(a codebook whose one bin is all `bins` of this one, a function: tokens [..., M] of bins -> its tokens)."""
        shape = self.shape(bins, d)
        pool = refining.pooled(self.kind, shape, next_pow2(d))
        return self.with_vocab_size(2 * pool[1] * pool[2]), lambda tokens: refining.places(tokens, shape, pool)

    def with_vocab_size(self, vocab_size: int) -> "Codebook":
        """The same codebook with another number of values of a token."""
        return replace(self, vocab_size=vocab_size)

    def chunk_places(self, dims: int, chunks: int, step_index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """How a view is cut in chunks of shuffled dimensions, see `Backend`."""
        return backend(device).chunk_places(dims, chunks, counter(step_index), self.seed, device)

    def arrival_bias(self, sizes: tuple[int, ...], step_index: int, device: torch.device) -> Tensor:
        """-log of the arrival times of each chunk's indices, see `Backend`."""
        return backend(device).arrival_bias(sizes, counter(step_index), self.seed, device)

    def noise(self, tokens: Tensor, d: int, step_index: int, pooled: bool = False) -> Tensor:
        """z(tokens), exact on every device: int64 [B, U, M] -> float32 [B, U, D] of root mean square 1 in each view.

        Token m names an atom of bin m, or, when `pooled` (tokens of `top` or `biased`), of the one bin that is all."""
        where = self._where(1 if pooled else tokens.shape[-1], d, step_index)
        return backend(tokens.device).noise(tokens.contiguous(), d, *where)

    def backtrace(
        self, y: Tensor, x0_hat: Tensor, tokens: Tensor, keep: float, sigma_up: float, step_index: int, pooled: bool = False
    ) -> Tensor:
        """x0_hat + keep (y - x0_hat) + sigma_up z(tokens), the loop's update: float32 [B, U, D], fused on CUDA."""
        where = self._where(1 if pooled else tokens.shape[-1], y.shape[-1], step_index)
        y, x0_hat, tokens = y.contiguous(), x0_hat.contiguous(), tokens.contiguous()
        return backend(y.device).backtrace(y, x0_hat, tokens, keep, sigma_up, *where)


START_PLACES = 1 << 18  # numbers of the start that are drawn at a time


def start_noise(blocks: int, d: int, seed: int, device: torch.device, first_block: int = 0) -> Tensor:
    """The initial noise when no token pays for it: float32 [U, D] of root mean square 1 in each view."""
    together = max(1, START_PLACES // d)  # one by one, tens of thousands of small blocks take half a minute
    parts = [
        reference.start_noise(d, seed, some) for some in torch.arange(first_block, first_block + blocks).split(together)
    ]
    return torch.cat(parts).to(device)


__all__ = ["NOT_FINITE", "Backend", "Codebook", "backend", "start_noise"]
