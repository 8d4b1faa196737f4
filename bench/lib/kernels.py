"""A call of a Triton kernel on fresh inputs, at one size: what is timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import noisebook_kernels as kernels
from bench.lib import baselines, floors
from bench.lib.timing import copies_of
from noisebook.codebook import Codebook, refining, triton

STEP, SEED, KEEP, SIGMA_UP = 5, 0x9E3779B97F4A7C15, 0.75, 0.5
TOKENS = 64  # most input copies of kernels that read nothing but tokens


@dataclass(frozen=True)
class Case:
    """One row. codewords: atoms of all bins and bases; bins: tokens a view (for `top`, `biased`: of one bin).

    What rule `poisson` draws has no codebook: `arrival_bias` of K = codewords values an index and `chunk_places` of D
    dimensions, for as many chunks as there are `bins`; both are the same for any batch."""

    kernel: str
    codebook: str
    d: int
    codewords: int
    batch: int
    bins: int = 1

    @property
    def name(self) -> str:
        logk = self.codewords.bit_length() - 1
        return f"{self.codebook}_{self.kernel} D={self.d} K=2^{logk} B={self.batch} M={self.bins}"

    @property
    def shape(self) -> tuple[int, ...]:
        """What the wrapper calls (bins, atoms[, bases]), of one bin for `top` and `biased`."""
        bins = 1 if self.kernel in ("top", "biased") else self.bins
        shape = Codebook(self.codebook, 2 * self.codewords // bins, SEED).shape(bins, self.d)
        return shape if self.codebook == "hadamard" else shape[:2]

    @property
    def floor(self) -> tuple[str, float, dict[str, float]]:
        """(what binds, its floor in ms, all floors in ms), see floors.py."""
        bounds = floors.of_kernel(
            self.kernel, self.codebook, self.d, self.codewords, self.batch, self.bins, floors.committed()
        )
        return *floors.binding(bounds), bounds

    @property
    def function(self) -> Callable[..., Any]:
        """The wrapper in noisebook_kernels, or for `chain` what it replaces: the definition in torch over other wrappers."""
        if self.kernel == "chain":
            return chain
        return getattr(kernels, f"{self.codebook}_{self.kernel}")


def chain(residual: Tensor, tokens: Tensor, _: int, bins: int, atoms: int, bases: int, step_index: int, seed: int) -> Tensor:
    """`hadamard_refined` by its definition."""
    where = (step_index, seed)
    return refining.refined(triton.select, triton.noise, residual, tokens, "hadamard", (bins, atoms, bases), *where)


def arguments(case: Case, residual: Tensor, device: torch.device) -> tuple[Tensor, tuple[Any, ...]]:
    """(residual, what follows it) of a search's wrapper, without step and seed."""
    if case.kernel == "select":
        return residual, case.shape
    if case.kernel in ("refined", "chain"):
        tokens = torch.randint(0, 2 * case.codewords // case.bins, (len(residual), 1, case.bins), device=device)
        return residual, (tokens, refining.parts_of(case.bins), *case.shape)
    if case.kernel == "top":
        return residual, (case.bins, *case.shape[1:])
    bias = baselines.arrival_bias(case.codewords, SEED % 2**32, device).float()[None]
    return residual, (bias, *(case.shape[1:] if case.codebook == "hadamard" else ()))


def fresh(device: torch.device) -> torch.Generator:
    return baselines.generator(device, torch.seed() % 2**63)


def drawn(case: Case, step: int, device: torch.device) -> tuple[Tensor, ...]:
    """What `arrival_bias` or `chunk_places` gives at a step; of the bias a tuple of one."""
    if case.codebook == "arrival":
        return (case.function((case.codewords,) * case.bins, step, SEED, device),)
    return case.function(case.d, case.bins, step, SEED, device)


def prepare(case: Case, device: torch.device) -> tuple[Callable[[int], Tensor], int]:
    """(call on input copy i, number of copies), all inputs fresh."""
    source = fresh(device)
    function = case.function
    if case.codebook in ("arrival", "chunk"):  # nothing goes in but numbers: a copy is another step
        return lambda i: drawn(case, i, device)[0], TOKENS
    if case.kernel not in ("noise", "backtrace"):
        residuals = copies_of((case.batch, 1, case.d), device, source)
        rest = arguments(case, residuals[0], device)[1]
        return lambda i: function(residuals[i], *rest, STEP, SEED), len(residuals)
    states = copies_of((2, case.batch, 1, case.d), device, source) if case.kernel == "backtrace" else None
    count = TOKENS if states is None else len(states)
    choices = 2 * case.codewords // case.bins
    tokens = torch.randint(0, choices, (count, case.batch, 1, case.bins), device=device, generator=source)
    if states is None:
        return lambda i: function(tokens[i], case.d, *case.shape, STEP, SEED), count
    return lambda i: function(*states[i], tokens[i], KEEP, SIGMA_UP, *case.shape, STEP, SEED), count
