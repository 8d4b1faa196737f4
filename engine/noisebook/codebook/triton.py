"""The Triton kernels, for CUDA tensors: the functions of `noisebook.codebook.Backend`.

Nothing here waits for the device, so a residual that is not finite gives some tokens: `Codec` looks once, at the end.
"""

import torch
from torch import Tensor

import noisebook_kernels as kernels
from noisebook.codebook import refining


def _refuse(block: int) -> None:
    if block:
        raise NotImplementedError("the kernels number blocks from 0: give all blocks of an image in one call")


def select(residual: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0) -> Tensor:
    _refuse(block)
    bins, atoms, bases = shape
    if kind == "hadamard":
        return kernels.hadamard_select(residual, bins, atoms, bases, step_index, seed)
    return kernels.independent_select(residual, bins, atoms, step_index, seed)


def refined(
    residual: Tensor, tokens: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    _refuse(block)
    bins, atoms, bases = shape
    parts = refining.parts_of(bins)
    if kind == "hadamard" and parts > 1:
        return kernels.hadamard_refined(residual, tokens, parts, bins, atoms, bases, step_index, seed)
    return refining.refined(select, noise, residual, tokens, kind, shape, step_index, seed, block)


def top(
    residual: Tensor, count: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    _refuse(block)
    _, atoms, bases = shape
    if kind == "hadamard":
        return kernels.hadamard_top(residual, count, atoms, bases, step_index, seed)
    return kernels.independent_top(residual, count, atoms, step_index, seed)


def biased(
    residual: Tensor, bias: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    _refuse(block)
    _, atoms, bases = shape
    if kind == "hadamard":
        return kernels.hadamard_biased(residual, bias, atoms, bases, step_index, seed)
    return kernels.independent_biased(residual, bias, step_index, seed)


def arrival_bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    return kernels.arrival_bias(sizes, step_index, seed, device)


def chunk_places(dims: int, chunks: int, step_index: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return kernels.chunk_places(dims, chunks, step_index, seed, device)


def noise(
    tokens: Tensor, d: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    _refuse(block)
    bins, atoms, bases = shape
    if kind == "hadamard":
        return kernels.hadamard_noise(tokens, d, bins, atoms, bases, step_index, seed)
    return kernels.independent_noise(tokens, d, bins, atoms, step_index, seed)


def backtrace(
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
    _refuse(block)
    bins, atoms, bases = shape
    if kind == "hadamard":
        return kernels.hadamard_backtrace(y, x0_hat, tokens, keep, sigma_up, bins, atoms, bases, step_index, seed)
    return kernels.independent_backtrace(y, x0_hat, tokens, keep, sigma_up, bins, atoms, step_index, seed)
