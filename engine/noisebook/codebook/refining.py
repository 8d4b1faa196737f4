"""Tokens of a step chosen again, each part of the bins given all others: the definition, in plain torch.

Bins are chosen as if each stood by itself, but atoms of different bases are not orthogonal. For z the noise of all tokens
and c = <z, u> / D its cosine with the residual's direction u, the cosine grows most along u - c z', z' the noise of the
tokens that stay, in its share sqrt(m / M) of the length (docs/findings/refining-tokens.md)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

PARTS = 4  # of the bins, chosen again one after the other: bin m is of part m % PARTS

Shape = tuple[int, int, int]


def parts_of(bins: int) -> int:
    """How many parts that many bins have; a single bin has nothing to be chosen again for."""
    return min(PARTS, bins)


def pooled(kind: str, shape: Shape, p: int) -> Shape:
    """The shape of a codebook whose one bin is all bins of one of that shape, for views padded to p dimensions."""
    bins, atoms, bases = shape
    return 1, p if kind == "hadamard" else bins * atoms, bases


def places(tokens: Tensor, shape: Shape, pool: Shape) -> Tensor:
    """Tokens [..., M] of bins of that shape as tokens of the one bin `pooled`."""
    (bins, atoms, _), rows = shape, pool[1]
    atom, first = tokens >> 1, torch.arange(bins, device=tokens.device) * (rows // bins)
    return 2 * (atom // atoms * rows + atom % atoms + first) + (tokens & 1)


def refined(
    select: Callable[..., Tensor],
    noise: Callable[..., Tensor],
    residual: Tensor,
    tokens: Tensor,
    kind: str,
    shape: Shape,
    *where: int,
) -> Tensor:
    """float32 [B, U, D], int64 [B, U, M] -> int64 [B, U, M], by `select` and `noise` of a back end. where: (step index,
    seed), and the number of the first block where that is not 0."""
    d, parts = residual.shape[-1], parts_of(shape[0])
    if parts < 2:
        return tokens
    u = residual / residual.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
    pool = pooled(kind, shape, 1 << (d - 1).bit_length())
    tokens = tokens.clone()
    for part in range(parts):
        cosine = (noise(tokens, d, kind, shape, *where) * u).mean(-1, keepdim=True)
        placed = places(tokens, shape, pool).unflatten(-1, (-1, parts))
        others = torch.cat([placed[..., :part], placed[..., part + 1 :]], -1).flatten(-2)
        rest = noise(others, d, kind, pool, *where)
        missing = u - cosine * math.sqrt(1 - 1 / parts) * rest
        tokens[..., part::parts] = select(missing, kind, shape, *where)[..., part::parts]
    return tokens
