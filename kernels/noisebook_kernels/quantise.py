# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Rotated residuals as int8, for the search of kind `independent`.

The dot with signs sums over dimensions in any order, so q is stored in the order in which bits come out of the words
cheaply: a chunk is `draws` Philox draws of 128 dimensions, and it holds the lowest bits of all its bytes, then the next
ones.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import TILE, warps

DRAW = 128  # dimensions whose signs one Philox draw holds


@triton.jit
def quantise_kernel(
    V, MOST, Q, TOTAL, SCALE, norm, P: tl.constexpr, N: tl.constexpr, TILES: tl.constexpr, BYTES: tl.constexpr
):
    """V [rows, P] float32 -> Q [rows, N TILES] int8 = rint((127 v) / max |v|) in the order of the signs, zeros beyond P;
    TOTAL [rows] int32 its sum; SCALE [rows] = max / norm. Grid: (rows TILES,).

    A chunk has BYTES bytes of sign bits. With several tiles a row, MOST [rows] is max |v| and TOTAL starts at 0."""
    row = tl.program_id(0).to(tl.int64) // TILES
    d = tl.program_id(0) % TILES * N + tl.arange(0, N)
    x = tl.load(V + row * P + d, mask=d < P, other=0.0)
    most = tl.max(tl.abs(x), axis=0) if TILES == 1 else tl.load(MOST + row)
    divisor = tl.where(most > 0, most, 1.0) + tl.full((N,), 0.0, tl.float32)
    x = tl.div_rn(127.0 * x, divisor) + 12582912.0  # 1.5 * 2^23: the low bits are the integer now, half to even
    q = x.to(tl.int32, bitcast=True).to(tl.int8)
    total = tl.sum(q.to(tl.int32), axis=0)
    if TILES == 1:
        tl.store(TOTAL + row, total)
    else:
        tl.atomic_add(TOTAL + row, total, sem="relaxed")
    q = tl.permute(tl.reshape(q, (N // (8 * BYTES), BYTES, 8)), (0, 2, 1))
    tl.store(Q + row * (N * TILES) + d, tl.reshape(q, (N,)))
    tl.store(SCALE + row, tl.div_rn(most, norm))


def tiles(width: int) -> int:
    """Programs that share a view of `width` entries."""
    return width // min(width, TILE)


def quantise(v: Tensor, q: Tensor, total: Tensor, scale: Tensor, draws: int) -> None:
    """v [rows, P] float32 -> q [rows, width] int8 in chunks of `draws`, the sum of each row int32 (zero before, where
    there are several `tiles`), and what an integer score is worth float32. The rows of the last three may be cut in
    [images, blocks]."""
    size, width = v.shape[1], q.shape[-1]
    n = min(width, TILE)
    most = v if tiles(width) == 1 else torch.linalg.vector_norm(v, math.inf, dim=-1)
    quantise_kernel[(len(v) * tiles(width),)](
        v,
        most,
        q,
        total,
        scale,
        127 * math.sqrt(size),
        P=size,
        N=n,
        TILES=tiles(width),
        BYTES=DRAW // 8 * draws,
        num_warps=warps(n),
        enable_fp_fusion=False,
    )
