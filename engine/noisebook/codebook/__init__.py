"""Codebooks: `select` finds the tokens of a residual, `noise` makes the codeword sum of tokens, on any device.

The codebook is never stored: it follows from (seed, step, block). Three implementations give the same codewords, bit for
bit: Triton kernels for CUDA tensors, the C++ extension for CPU tensors, and the torch definition in
`reference`, which serves (slowly, with a warning) where the extension could not be built.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noisebook.codebook import reference
from noisebook.codebook.chunks import arrival_bias, chunk_places
from noisebook.codebook.reference import next_pow2
from noisebook.errors import ImageError, SpecError
from noisebook.runtime.native import native

NOT_FINITE = "the residual has NaN or Inf: the image or the backbone's prediction is not finite"


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

    def shape(self, bins: int, d: int) -> tuple[int, ...]:
        """(bins, atoms, bases) of kind `hadamard`, (bins, atoms) of `independent`: the arguments of the kernels."""
        p = next_pow2(d)
        if not 1 <= bins <= p or bins & (bins - 1):
            raise SpecError(f"{bins} bins do not fit a view of {d} dimensions: use a power of two up to {p}")
        if self.kind == "independent":
            return bins, self.vocab_size // 2
        atoms = min(self.vocab_size // 2, p // bins)
        return bins, atoms, self.vocab_size // (2 * atoms)

    def select(self, residual: Tensor, bins: int, step_index: int) -> Tensor:
        """The best signed atom of every bin: float32 [B, U, D] -> int64 [B, U, M] in [0, V).

        A residual that is not finite raises ImageError on the CPU; on CUDA, which must not wait for the answer, the
        caller checks once at the end (`Codec` does).
        """
        shape = self.shape(bins, residual.shape[-1])
        residual = residual.contiguous()
        if residual.is_cuda:
            import noisebook_kernels as kernels

            return getattr(kernels, f"{self.kind}_select")(residual, *shape, counter(step_index), self.seed)
        if not torch.isfinite(residual).all():
            raise ImageError(NOT_FINITE)
        if (c := native()) is not None:
            return torch.from_numpy(
                getattr(c, f"{self.kind}_select")(residual.numpy(), *shape, counter(step_index), self.seed)
            )
        select = getattr(reference, f"{self.kind}_select")
        views = residual.unbind(1)
        return torch.stack([select(r, *shape, counter(step_index), self.seed, unit) for unit, r in enumerate(views)], 1)

    def top(self, residual: Tensor, count: int, step_index: int) -> Tensor:
        """The `count` signed atoms of largest |score| of the whole vocabulary, best first; ties to the smaller atom
        (Turbo-DDCM): float32 [B, U, D] -> int64 [B, U, count] in [0, V). Raises SpecError for more than V / 2 atoms."""
        if not 1 <= count <= self.vocab_size // 2:
            raise SpecError(f"{count} of {self.vocab_size // 2} atoms cannot be chosen")
        return self._unbinned("top", residual, (count,), (), step_index)

    def biased(self, residual: Tensor, bias: Tensor, step_index: int) -> Tensor:
        """argmax over atoms k of score_k + bias_k, unsigned (token 2 k): float32 [B, U, D], bias float32 [U, V / 2] ->
        int64 [B, U, 1]. With residual mu and bias -log T it is the Poisson functional representation (DiffC)."""
        if bias.shape != (residual.shape[1], self.vocab_size // 2):
            raise SpecError(f"bias must be [{residual.shape[1]}, {self.vocab_size // 2}], not {list(bias.shape)}")
        return self._unbinned("biased", residual, (), (bias,), step_index)

    def _unbinned(self, rule: str, residual: Tensor, count: tuple, bias: tuple[Tensor, ...], step_index: int) -> Tensor:
        """`top` and `biased`: rules over the vocabulary as one bin."""
        shape = self.shape(1, residual.shape[-1])[1:]
        if self.kind == "independent" and bias:
            shape = ()  # the bias says how many
        residual, bias = residual.contiguous(), tuple(b.contiguous() for b in bias)
        name = f"{self.kind}_{rule}"
        if residual.is_cuda:
            import noisebook_kernels as kernels

            return getattr(kernels, name)(residual, *bias, *count, *shape, counter(step_index), self.seed)
        if not torch.isfinite(residual).all():
            raise ImageError(NOT_FINITE)
        if (c := native()) is not None:
            arrays = [x.numpy() for x in (residual, *bias)]
            return torch.from_numpy(getattr(c, name)(*arrays, *count, *shape, counter(step_index), self.seed))
        parts = [
            getattr(reference, name)(r, *(b[unit] for b in bias), *count, *shape, counter(step_index), self.seed, unit)
            for unit, r in enumerate(residual.unbind(1))
        ]
        return torch.stack(parts, 1)

    def scores(self, residual: Tensor, step_index: int) -> Tensor:
        """<z_k, r> of every unsigned atom of the whole vocabulary: float32 [B, U, D] -> [B, U, V / 2]. By the definition, in
        float64 on the device: for rules that need all scores of a small vocabulary."""
        shape = self.shape(1, residual.shape[-1])[1:]
        every = getattr(reference, f"{self.kind}_scores")
        count = shape[1] if self.kind == "hadamard" else shape[0]  # bases, or words
        with residual.device:
            parts = [every(r, count, counter(step_index), self.seed, unit) for unit, r in enumerate(residual.unbind(1))]
        if self.kind == "hadamard":
            parts = [part[..., : shape[0]].flatten(1) for part in parts]
        return torch.stack(parts, 1).to(residual)

    def pooled(self, bins: int, d: int) -> "tuple[Codebook, Callable[[Tensor], Tensor]]":
        """(a codebook whose one bin is all `bins` of this one, what turns tokens [..., M] of bins into its tokens)."""
        _, atoms, *bases = self.shape(bins, d)
        rows = next_pow2(d) if bases else bins * atoms  # of one base
        width = rows // bins

        def places(tokens: Tensor) -> Tensor:
            atom, first = tokens >> 1, torch.arange(bins, device=tokens.device) * width
            return 2 * (atom // atoms * rows + atom % atoms + first) + (tokens & 1)

        return Codebook(self.kind, 2 * rows * (bases[0] if bases else 1), self.seed), places

    def with_vocab_size(self, vocab_size: int) -> "Codebook":
        """The same codebook with another number of values of a token."""
        return replace(self, vocab_size=vocab_size)

    def chunk_places(self, dims: int, chunks: int, step_index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """How a view is cut in chunks of shuffled dimensions, see chunks.py."""
        return chunk_places(dims, chunks, counter(step_index), self.seed, device)

    def arrival_bias(self, sizes: tuple[int, ...], step_index: int, device: torch.device) -> Tensor:
        """-log of the arrival times of each chunk's indices, see chunks.py."""
        return arrival_bias(sizes, counter(step_index), self.seed, device)

    def noise(self, tokens: Tensor, d: int, step_index: int, pooled: bool = False) -> Tensor:
        """z(tokens), exact on every device: int64 [B, U, M] -> float32 [B, U, D] of root mean square 1 in each view.

        Token m names an atom of bin m, or, when `pooled` (tokens of `top` or `biased`), of the one bin that is all."""
        shape = self.shape(1 if pooled else tokens.shape[-1], d)
        tokens = tokens.contiguous()
        if tokens.is_cuda:
            import noisebook_kernels as kernels

            return getattr(kernels, f"{self.kind}_noise")(tokens, d, *shape, counter(step_index), self.seed)
        if (c := native()) is not None:
            return torch.from_numpy(
                getattr(c, f"{self.kind}_noise")(tokens.numpy(), d, *shape, counter(step_index), self.seed)
            )
        total = getattr(reference, f"{self.kind}_total")
        parts = [total(t, d, *shape, counter(step_index), self.seed, unit) for unit, t in enumerate(tokens.unbind(1))]
        return reference.unit_rms(torch.stack(parts, 1))

    def backtrace(
        self, y: Tensor, x0_hat: Tensor, tokens: Tensor, keep: float, sigma_up: float, step_index: int, pooled: bool = False
    ) -> Tensor:
        """x0_hat + keep (y - x0_hat) + sigma_up z(tokens), method.md section 2: float32 [B, U, D], fused on CUDA."""
        if y.is_cuda:
            import noisebook_kernels as kernels

            shape = self.shape(1 if pooled else tokens.shape[-1], y.shape[-1])
            fused = getattr(kernels, f"{self.kind}_backtrace")
            y, x0_hat, tokens = y.contiguous(), x0_hat.contiguous(), tokens.contiguous()
            return fused(y, x0_hat, tokens, keep, sigma_up, *shape, counter(step_index), self.seed)
        return x0_hat + keep * (y - x0_hat) + sigma_up * self.noise(tokens, y.shape[-1], step_index, pooled)


def start_noise(blocks: int, d: int, seed: int, device: torch.device) -> Tensor:
    """The initial noise when no token pays for it: float32 [U, D] of root mean square 1 in each view."""
    return torch.stack([reference.start_noise(d, seed, unit) for unit in range(blocks)]).to(device)


__all__ = ["Codebook", "start_noise"]
