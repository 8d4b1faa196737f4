# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""What the tokens of other bins leave of a residual, for `refine`: y - share <t, y> / (|t| |t'|) t', for y the residual, t
the integers of all tokens' atoms summed and t' those of the tokens that stay.

Products and sums are of integers, so they depend neither on tiles nor on launch settings.
"""

import triton
import triton.language as tl

from .adding import negatives, token_words
from .fwht import fwht
from .layout import KEY
from .philox import STREAM_ROTATION, flip, row_bits
from .winners import signed_token


@triton.jit
def unit(MOST, row):
    """The power of two that brings the largest entry of a row of the residuals, MOST [rows], into [1, 2)."""
    largest = tl.load(MOST + row).to(tl.int32, bitcast=True) & 0x7F800000
    return tl.maximum(0x7F000000 - largest, 0x00800000).to(tl.float32, bitcast=True)


@triton.jit
def products(t, rest, y, scale, BITS: tl.constexpr, LOGN: tl.constexpr):
    """(<t, t>, <rest, rest>, <t, y>) as int64, of int32, int32 and float32 tensors of 1 << LOGN entries; y in units of
    1 / (scale << BITS)."""
    N: tl.constexpr = 1 << LOGN
    whole = tl.floor(y * scale * (1 << BITS) + 0.5).to(tl.int32)
    t, rest = tl.reshape(t, (N,)).to(tl.int64), tl.reshape(rest, (N,)).to(tl.int64)
    dot = tl.sum(t * tl.reshape(whole, (N,)).to(tl.int64), axis=0)
    return tl.sum(t * t, axis=0), tl.sum(rest * rest, axis=0), dot


@triton.jit
def store_products(SUMS, MOST, row, tile, t, rest, y, BITS: tl.constexpr, LOGN: tl.constexpr, TILES: tl.constexpr):
    """Those of a tile into SUMS int64 [rows, 3, TILES]."""
    squares, others, dot = products(t, rest, y, unit(MOST, row), BITS, LOGN)
    at = SUMS + row.to(tl.int64) * (3 * TILES) + tile
    tl.store(at, squares)
    tl.store(at + TILES, others)
    tl.store(at + 2 * TILES, dot)


@triton.jit
def coefficient(squares, others, dot, scale, SHARE: tl.constexpr, BITS: tl.constexpr):
    """float32( share <t, y> / (|t| |rest|) ), or 0 where either is 0, of what `products` gives."""
    known = (squares > 0) & (others > 0)
    squares, others = tl.where(known, squares, 1).to(tl.float64), tl.where(known, others, 1).to(tl.float64)
    length = tl.sqrt(squares) * tl.sqrt(others) * (scale.to(tl.float64) * (1 << BITS))
    return tl.where(known, SHARE * dot.to(tl.float64) / length, 0.0).to(tl.float32)


@triton.jit
def load_coefficient(SUMS, MOST, row, LOGT: tl.constexpr, SHARE: tl.constexpr, BITS: tl.constexpr):
    """Of the sums of all tiles of a row, SUMS [rows, 3, 1 << LOGT]."""
    T: tl.constexpr = 1 << LOGT
    at = SUMS + row.to(tl.int64) * (3 * T) + tl.arange(0, T)
    squares, others, dot = tl.load(at), tl.load(at + T), tl.load(at + 2 * T)
    squares, others, dot = tl.sum(squares, axis=0), tl.sum(others, axis=0), tl.sum(dot, axis=0)
    return coefficient(squares, others, dot, unit(MOST, row), SHARE, BITS)


@triton.jit(do_not_specialize=["rows", "columns", "atoms", "apart", "part", "blocks", *KEY])
def parts_kernel(
    TOKENS,
    KEYS,
    V,
    S,
    SUMS,
    MOST,
    rows,
    columns,
    atoms,
    apart,
    part,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    BITS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """S [0] [rows, P] int32 = the sign vectors of the tokens outside `part`, summed. WHOLE, for a view of P dimensions:
    SUMS = the products with V [rows, P]; otherwise S [1] = those of all tokens, summed. Grid: (rows tiles,).

    TOKENS [rows, columns] int64, token m of bin m and part m % PARTS. KEYS [PARTS, rows, columns / PARTS]: parts before
    `part` have been chosen again, and their keys stand there."""
    N: tl.constexpr = 1 << LOGN
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    number = block + row % blocks
    negative = tl.full(((N + 31) // 32, min(N, 32) // min(N, 8), min(N, 8)), 0, tl.int32)  # -1 of the tokens that stay
    own = negative
    for begin in range(0, columns, CHUNK):
        m = begin + tl.arange(0, CHUNK)
        of = m % PARTS
        token = tl.load(TOKENS + row.to(tl.int64) * columns + m, mask=(m < columns) & (of >= part), other=0)
        at = (of * rows + row).to(tl.int64) * (columns // PARTS) + m // PARTS
        key = tl.load(KEYS + at, mask=(m < columns) & (of < part), other=0)
        token = tl.where(of < part, signed_token(key), token)
        w = token_words(token, m, tile * N, atoms, apart, step_index, number, k0, k1, LOGN, True)
        negative += negatives(w, (m < columns) & (of != part), LOGN)
        own += negatives(w, (m < columns) & (of == part), LOGN)
    chosen = columns // PARTS
    rest = columns - chosen - 2 * negative
    t = rest + chosen - 2 * own
    rest, t = tl.reshape(rest, (N,)), tl.reshape(t, (N,))
    at = (row.to(tl.int64) << LOGP) + tile * N + tl.arange(0, N)
    tl.store(S + at, rest)
    if WHOLE:
        store_products(SUMS, MOST, row, tile, t, rest, tl.load(V + at), BITS, LOGN, TILES)
    else:
        tl.store(S + (rows.to(tl.int64) << LOGP) + at, t)


@triton.jit
def cut(S, R, row, rows, first, d, step_index, number, k0, k1, LOGP: tl.constexpr, LOGN: tl.constexpr, LOW: tl.constexpr):
    """(all tokens' integers, those of the tokens that stay, a * r) [1, N] from `first` on, 0 beyond d. S [2, rows, P], R
    [rows, d]; LOW: S still lacks the transform of the LOGN bits."""
    N: tl.constexpr = 1 << LOGN
    n = first + tl.arange(0, N)[None, :]
    at = (row.to(tl.int64) << LOGP) + n
    rest, t = tl.load(S + at), tl.load(S + (rows.to(tl.int64) << LOGP) + at)
    if LOW:
        rest, t = fwht(rest, 1, N, LOGN), fwht(t, 1, N, LOGN)
    index = tl.full((1, 1), 0, tl.int32)
    r = tl.load(R + row.to(tl.int64) * d + n, mask=n < d, other=0.0)
    r = flip(r, row_bits(first, index, step_index, number, k0, k1, STREAM_ROTATION, N))
    return tl.where(n < d, t, 0), tl.where(n < d, rest, 0), r


@triton.jit(do_not_specialize=["rows", "blocks", *KEY])
def sums_kernel(
    S, R, SUMS, MOST, rows, d, blocks, block, step_index, k0, k1, LOGP: tl.constexpr, LOGN: tl.constexpr, BITS: tl.constexpr
):
    """SUMS of the tiles of a view that is padded, S [2, rows, P] transformed. Grid: (rows tiles,)."""
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    number = block + row % blocks
    t, rest, r = cut(S, R, row, rows, tile << LOGN, d, step_index, number, k0, k1, LOGP, LOGN, False)
    store_products(SUMS, MOST, row, tile, t, rest, r, BITS, LOGN, TILES)


@triton.jit(do_not_specialize=["rows", "blocks", *KEY])
def missing_kernel(
    S,
    R,
    SUMS,
    MOST,
    OUT,
    rows,
    d,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    BITS: tl.constexpr,
    SHARE: tl.constexpr,
):
    """OUT [rows, P] = a * what is missing, the LOGN lowest bits transformed, for a view that is padded. S [2, rows, P] is
    transformed, or nothing of it where one tile is the view. Grid: (rows tiles,)."""
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    N: tl.constexpr = 1 << LOGN
    row = tl.program_id(0) // TILES
    first = (tl.program_id(0) % TILES) << LOGN
    number = block + row % blocks
    t, rest, r = cut(S, R, row, rows, first, d, step_index, number, k0, k1, LOGP, LOGN, TILES == 1)
    if TILES == 1:
        scale = unit(MOST, row)
        squares, others, dot = products(t, rest, r, scale, BITS, LOGN)
        share = coefficient(squares, others, dot, scale, SHARE, BITS)
    else:
        share = load_coefficient(SUMS, MOST, row, LOGP - LOGN, SHARE, BITS)
    x = fwht(r - share * rest.to(tl.float32), 1, N, LOGN)
    tl.store(OUT + (row.to(tl.int64) << LOGP) + first + tl.arange(0, N)[None, :], x)
