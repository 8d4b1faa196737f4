"""The C++ extension, for CPU tensors: the functions of `noisebook.codebook.Backend`. What is drawn and
kept for a step is the definition's."""

import types

import torch
from torch import Tensor

from noisebook.codebook import reference, refining
from noisebook.codebook.reference import require_finite
from noisebook.runtime.native import native


def _extension() -> types.ModuleType:
    """`noisebook._C`. `noisebook.codebook.backend` sends nothing here where it was not built."""
    loaded = native()
    if loaded is None:
        raise RuntimeError("noisebook._C was not built")
    return loaded


def select(residual: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0) -> Tensor:
    require_finite(residual)
    bins, atoms, bases = shape
    if kind == "hadamard":
        tokens = _extension().hadamard_select(residual.numpy(), bins, atoms, bases, step_index, seed, block)
    else:
        tokens = _extension().independent_select(residual.numpy(), bins, atoms, step_index, seed, block)
    return torch.from_numpy(tokens)


def refined(
    residual: Tensor, tokens: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    return refining.refined(select, noise, residual, tokens, kind, shape, step_index, seed, block)


def top(
    residual: Tensor, count: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    require_finite(residual)
    _, atoms, bases = shape
    if kind == "hadamard":
        tokens = _extension().hadamard_top(residual.numpy(), count, atoms, bases, step_index, seed, block)
    else:
        tokens = _extension().independent_top(residual.numpy(), count, atoms, step_index, seed, block)
    return torch.from_numpy(tokens)


def biased(
    residual: Tensor, bias: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    require_finite(residual)
    _, atoms, bases = shape
    if kind == "hadamard":
        tokens = _extension().hadamard_biased(residual.numpy(), bias.numpy(), atoms, bases, step_index, seed, block)
    else:
        tokens = _extension().independent_biased(residual.numpy(), bias.numpy(), step_index, seed, block)
    return torch.from_numpy(tokens)


def arrival_bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    return reference.arrival_bias(sizes, step_index, seed, device)


def chunk_places(dims: int, chunks: int, step_index: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return reference.chunk_places(dims, chunks, step_index, seed, device)


def noise(
    tokens: Tensor, d: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    bins, atoms, bases = shape
    if kind == "hadamard":
        z = _extension().hadamard_noise(tokens.numpy(), d, bins, atoms, bases, step_index, seed, block)
    else:
        z = _extension().independent_noise(tokens.numpy(), d, bins, atoms, step_index, seed, block)
    return torch.from_numpy(z)


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
    # in place: for a photograph a new tensor for each operation takes longer than the operation
    z = noise(tokens, y.shape[-1], kind, shape, step_index, seed, block)
    return (y - x0_hat).mul_(keep).add_(x0_hat).add_(z.mul_(sigma_up))
