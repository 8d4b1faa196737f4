# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""What rule `poisson` draws beside codewords: the arrival times of each chunk's indices, and which dimensions make a chunk.

Both are made on the device out of a few numbers, a launch or two for all chunks together. Nothing is kept between calls,
so a CUDA graph makes them anew at each replay.

Arrival times are sums of up to 2^24 gaps, in float64: in float32 late times would stand still. A program of `sums_kernel`
adds up the gaps of one tile; a program of `bias_kernel` adds up what came before its tile, and draws its gaps again, which
takes less time than to write them down.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import KEY, Key, check, on
from .philox import STREAM_ARRIVAL, STREAM_CHUNK, stream_draw

TIMES = 4096  # arrival times of one program
PLACES = 1024  # places of chunks of one program
MOST = 1 << 30  # values of an index


@triton.jit
def words(tile, number, step_index, k0, k1, STREAM: tl.constexpr, SIZE: tl.constexpr):
    """Words tile SIZE ... (tile + 1) SIZE - 1 of entry 0 of a stream: uint32 [SIZE]."""
    draw = tile * (SIZE // 4) + tl.arange(0, SIZE // 4)
    w0, w1, w2, w3 = stream_draw(draw, tl.full((1,), 0, tl.int32), step_index, number, k0, k1, STREAM)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (SIZE,))


@triton.jit
def gaps(tile, number, step_index, k0, k1, SIZE: tl.constexpr):
    """Exponential gaps between arrivals, all above 0: float64 [SIZE]."""
    w = words(tile, number, step_index, k0, k1, STREAM_ARRIVAL, SIZE)
    return -tl.log((w.to(tl.float64) + 0.5) * 2.3283064365386963e-10)  # 2^-32: exact


@triton.jit(do_not_specialize=["tiles", "blocks", *KEY])
def sums_kernel(SUMS, tiles, blocks, block, step_index, k0, k1, SIZE: tl.constexpr):
    """SUMS [blocks, tiles] float64: the gaps of each tile of each chunk, added up. Grid: (tiles blocks,)."""
    u = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    tl.store(SUMS + u.to(tl.int64) * tiles + tile, tl.sum(gaps(tile, block + u, step_index, k0, k1, SIZE), axis=0))


@triton.jit(do_not_specialize=["tiles", "larger", "size", "rest", "blocks", *KEY])
def bias_kernel(SUMS, OUT, tiles, larger, size, rest, blocks, block, step_index, k0, k1, SIZE: tl.constexpr):
    """OUT [blocks, size] = -log of the arrival times; -inf from `rest` on in all but the first `larger` chunks.

    SUMS [blocks, tiles] of `sums_kernel`; where there is one tile nothing is read of it. Grid: (tiles blocks,)."""
    u = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    n = tl.arange(0, SIZE)
    before = tl.full((SIZE,), 0.0, tl.float64)
    for first in range(0, tile, SIZE):
        before += tl.load(SUMS + u.to(tl.int64) * tiles + first + n, mask=first + n < tile, other=0.0)
    times = tl.cumsum(gaps(tile, block + u, step_index, k0, k1, SIZE), axis=0) + tl.sum(before, axis=0)
    k = tile * SIZE + n
    bias = tl.where(k < tl.where(u < larger, size, rest), -tl.log(times).to(tl.float32), -float("inf"))
    tl.store(OUT + u.to(tl.int64) * size + k, bias, mask=k < size)


@triton.jit(do_not_specialize=["d", "blocks", *KEY])
def words_kernel(OUT, d, blocks, block, step_index, k0, k1, SIZE: tl.constexpr):
    """OUT [d] int32: the words that dimensions are sorted by, with the highest bit turned: in order as signed numbers."""
    tile = tl.program_id(0)
    at = tile * SIZE + tl.arange(0, SIZE)
    w = words(tile, block, step_index, k0, k1, STREAM_CHUNK, SIZE) ^ 0x80000000
    tl.store(OUT + at, w.to(tl.int32, bitcast=True), mask=at < d)


@triton.jit(do_not_specialize=["count", "width", "full"])
def places_kernel(ORDER, PLACES, LIES, count, width, full, SIZE: tl.constexpr):
    """PLACES [chunks, width], count entries: the dimensions of ORDER, -1 at the end of all but the first `full` chunks.
    LIES[dimension] = its place. Grid: over the places."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    u = at // width
    there = (at < count) & ((u < full) | (at % width < width - 1))
    dimension = tl.load(ORDER + at - tl.maximum(u - full, 0), mask=there, other=-1)
    tl.store(PLACES + at, dimension, mask=at < count)
    tl.store(LIES + dimension, at.to(tl.int64), mask=there)


def arrival_bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    """-log T_k of the arrival times of each chunk's indices, -inf from its size on: float32 [U, K], K the largest size.

    sizes  of the U chunks, at most two numbers, the larger first
    Raises ValueError for other sizes."""
    size, rest, larger = sizes[0], sizes[-1], sizes.count(sizes[0])
    if sizes != (size,) * larger + (rest,) * (len(sizes) - larger) or not 1 <= rest <= size <= MOST:
        raise ValueError(f"sizes must be at most two numbers from 1 to {MOST}, the larger first")
    out = torch.empty((len(sizes), size), dtype=torch.float32, device=device)
    check(out[None], 1, 1, 1, None, step_index, seed, 0)
    key, tiles = Key.of(len(sizes), 0, step_index, seed), triton.cdiv(size, TIMES)
    width = min(TIMES, max(4, triton.next_power_of_2(size)))
    grid, options = (tiles * len(sizes),), {"num_warps": 8 if width == TIMES else 4, "enable_fp_fusion": False}
    with on(out):
        sums = torch.empty((len(sizes), tiles), dtype=torch.float64, device=device)
        if tiles > 1:
            sums_kernel[grid](sums, tiles, *key, SIZE=width, **options)
        bias_kernel[grid](sums, out, tiles, larger, size, rest, *key, SIZE=width, **options)
    return out


def chunk_places(dims: int, chunks: int, step_index: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How `dims` dimensions in a seeded order are cut in chunks of about the same width W: (the dimension at each place of
    each chunk, int64 [chunks, W], -1: padding; where each dimension is among all those places, int64 [dims]).

    Raises ValueError for more chunks than dimensions."""
    if not 1 <= chunks <= dims:
        raise ValueError(f"chunks {chunks} not in [1, {dims}]")
    width = triton.cdiv(dims, chunks)
    places = torch.empty((chunks, width), dtype=torch.int64, device=device)
    check(places[None], dims, 1, 1, None, step_index, seed, 0)
    lies = torch.empty(dims, dtype=torch.int64, device=device)
    found = torch.empty(dims, dtype=torch.int32, device=device)
    with on(places):
        words_kernel[(triton.cdiv(dims, PLACES),)](found, dims, *Key.of(1, 0, step_index, seed), SIZE=PLACES, num_warps=4)
        order = found.sort(stable=True)[1]  # equal words: the smaller dimension first
        places_kernel[(triton.cdiv(places.numel(), PLACES),)](
            order, places, lies, places.numel(), width, dims - chunks * (width - 1), SIZE=PLACES, num_warps=4
        )
    return places, lies
