# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""What the tokens of other bins leave of a residual, for `refine`: y - share <t, y> / (|t| |t'|) t', for y the residual, t
the integers of all tokens' atoms summed and t' those of the tokens that stay.

Sums go from tile to tile in one order, neighbours first, so they depend neither on tiles nor on launch settings.
"""

import triton
import triton.language as tl

from .fwht import fwht
from .layout import KEY
from .philox import STREAM_BASIS, STREAM_ROTATION, flip, row_bits, row_words
from .update import walsh_words
from .winners import signed_token


@triton.jit
def pair_sum(x, LOG: tl.constexpr):
    """The sum of x [1 << LOG], neighbours first: the same bits however the tensor lies in threads."""
    for k in tl.static_range(LOG):
        a, b = tl.split(tl.reshape(x, (1 << (LOG - 1 - k), 2)))
        x = a + b
    return tl.sum(x, axis=0)


@triton.jit
def products(t, rest, y, LOGN: tl.constexpr):
    """(<t, t>, <rest, rest>, <t, y>) as float64, of int32, int32 and float32 tensors of 1 << LOGN entries.

    Each product is exact, and so are the first two sums."""
    N: tl.constexpr = 1 << LOGN
    t, rest = tl.reshape(t, (N,)).to(tl.int64), tl.reshape(rest, (N,)).to(tl.int64)
    dot = pair_sum(t.to(tl.float64) * tl.reshape(y, (N,)).to(tl.float64), LOGN)
    return tl.sum(t * t, axis=0).to(tl.float64), tl.sum(rest * rest, axis=0).to(tl.float64), dot


@triton.jit
def store_products(SUMS, row, tile, t, rest, y, LOGN: tl.constexpr, TILES: tl.constexpr):
    """Those of a tile into SUMS [rows, 3, TILES]."""
    squares, others, dot = products(t, rest, y, LOGN)
    at = SUMS + row.to(tl.int64) * (3 * TILES) + tile
    tl.store(at, squares)
    tl.store(at + TILES, others)
    tl.store(at + 2 * TILES, dot)


@triton.jit
def coefficient(squares, others, dot, SHARE: tl.constexpr):
    """float32( share <t, y> / (|t| |rest|) ), or 0 where either is 0."""
    known = (squares > 0) & (others > 0)
    length = tl.sqrt(tl.where(known, squares, 1.0)) * tl.sqrt(tl.where(known, others, 1.0))
    return tl.where(known, SHARE * dot / length, 0.0).to(tl.float32)


@triton.jit
def load_coefficient(SUMS, row, LOGT: tl.constexpr, SHARE: tl.constexpr):
    """Of the sums of all tiles of a row, SUMS [rows, 3, 1 << LOGT]."""
    T: tl.constexpr = 1 << LOGT
    at = SUMS + row.to(tl.int64) * (3 * T) + tl.arange(0, T)
    squares, others = pair_sum(tl.load(at), LOGT), pair_sum(tl.load(at + T), LOGT)
    return coefficient(squares, others, pair_sum(tl.load(at + 2 * T), LOGT), SHARE)


@triton.jit(do_not_specialize=["rows", "columns", "atoms", "apart", "part", "blocks", *KEY])
def parts_kernel(
    TOKENS,
    KEYS,
    V,
    S,
    SUMS,
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
    WHOLE: tl.constexpr,
):
    """S [0] [rows, P] int32 = the sign vectors of the tokens outside `part`, summed. WHOLE, for a view of P dimensions:
    SUMS = the products with V [rows, P]; otherwise S [1] = those of all tokens, summed. Grid: (rows tiles,).

    TOKENS [rows, columns] int64, token m of bin m and part m % PARTS. KEYS [PARTS, rows, columns / PARTS]: parts before
    `part` have been chosen again, and their keys stand there."""
    N: tl.constexpr = 1 << LOGN
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    WORDS: tl.constexpr = (N + 31) // 32
    WIDTH: tl.constexpr = N // WORDS
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    number = block + row % blocks
    word = tile * N // 32 + tl.arange(0, WORDS)[None, :]
    bit = tl.arange(0, WIDTH)[None, None, :].to(tl.uint32)
    negative = tl.full((WORDS, WIDTH), 0, tl.int32)  # of the tokens that stay
    own = tl.full((WORDS, WIDTH), 0, tl.int32)
    for begin in range(0, columns, CHUNK):
        m = begin + tl.arange(0, CHUNK)
        of = m % PARTS
        token = tl.load(TOKENS + row.to(tl.int64) * columns + m, mask=(m < columns) & (of >= part), other=0)
        at = (of * rows + row).to(tl.int64) * (columns // PARTS) + m // PARTS
        key = tl.load(KEYS + at, mask=(m < columns) & (of < part), other=0)
        token = tl.where(of < part, signed_token(key), token)
        atom = token >> 1
        i = m * apart + (atom % atoms).to(tl.int32)
        w = row_words(tile * N, (atom // atoms)[:, None], step_index, number, k0, k1, STREAM_BASIS, N)
        w = w ^ walsh_words(word, i[:, None]) ^ (-(token & 1)).to(tl.uint32)[:, None]
        weight = tl.where(m < columns, tl.where(of == part, 0x10000, 1), 0)  # two sums in one
        total = tl.sum(((w[:, :, None] >> bit) & 1).to(tl.int32) * weight[:, None, None], axis=0)
        negative += total & 0xFFFF
        own += total >> 16
    chosen = columns // PARTS
    rest = columns - chosen - 2 * negative
    t = rest + chosen - 2 * own
    at = (row.to(tl.int64) << LOGP) + tile * N + tl.arange(0, WORDS)[:, None] * 32 + tl.arange(0, WIDTH)[None, :]
    tl.store(S + at, rest)
    if WHOLE:
        store_products(SUMS, row, tile, t, rest, tl.load(V + at), LOGN, TILES)
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
def sums_kernel(S, R, SUMS, rows, d, blocks, block, step_index, k0, k1, LOGP: tl.constexpr, LOGN: tl.constexpr):
    """SUMS of the tiles of a view that is padded, S [2, rows, P] transformed. Grid: (rows tiles,)."""
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    number = block + row % blocks
    t, rest, r = cut(S, R, row, rows, tile << LOGN, d, step_index, number, k0, k1, LOGP, LOGN, False)
    store_products(SUMS, row, tile, t, rest, r, LOGN, TILES)


@triton.jit(do_not_specialize=["rows", "blocks", *KEY])
def missing_kernel(
    S, R, SUMS, OUT, rows, d, blocks, block, step_index, k0, k1, LOGP: tl.constexpr, LOGN: tl.constexpr, SHARE: tl.constexpr
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
        squares, others, dot = products(t, rest, r, LOGN)
        share = coefficient(squares, others, dot, SHARE)
    else:
        share = load_coefficient(SUMS, row, LOGP - LOGN, SHARE)
    x = fwht(r - share * rest.to(tl.float32), 1, N, LOGN)
    tl.store(OUT + (row.to(tl.int64) << LOGP) + first + tl.arange(0, N)[None, :], x)
