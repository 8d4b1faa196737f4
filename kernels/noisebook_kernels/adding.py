# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportAssignmentType=false
"""Sign vectors of tokens, added up.

An atom of `hadamard` is a * H(b_j * H e_i), and H e_i is a row of the Walsh matrix; so all chosen atoms, of any bases, are
summed as words of 32 sign bits (b_j xor Walsh row xor the token's sign) before the one transform. A codeword of
`independent` is a * H u_k: the same with other words.

Few tokens are added one after the other by the program that transforms the sum (`superposed`). Each takes more than a
microsecond, because its words hang on each other; so of many tokens the words are made at once (`adding_kernel`).
"""

import triton
import triton.language as tl
from torch import Tensor

from .layout import KEY, Key
from .philox import STREAM_BASIS, STREAM_INDEPENDENT, row_words

MANY = 8  # tokens from which on they are added at once
SUMMED = 1 << 15  # sign bits that a program adds up at once: those of 255 tokens at most, whose count fits a byte


@triton.jit
def walsh_words(word, i):
    """Bits popcount(d & i) % 2 of the dimensions d of word number `word`: uint32 of its shape. i: int32 scalar."""
    high = word & (i >> 5)
    high ^= high >> 16
    high ^= high >> 8
    high ^= high >> 4
    high ^= high >> 2
    high ^= high >> 1
    low = tl.where((i & 1) != 0, 0xAAAAAAAA, 0).to(tl.uint32)
    low ^= tl.where((i & 2) != 0, 0xCCCCCCCC, 0).to(tl.uint32)
    low ^= tl.where((i & 4) != 0, 0xF0F0F0F0, 0).to(tl.uint32)
    low ^= tl.where((i & 8) != 0, 0xFF00FF00, 0).to(tl.uint32)
    low ^= tl.where((i & 16) != 0, 0xFFFF0000, 0).to(tl.uint32)
    return (-(high & 1)).to(tl.uint32) ^ low


@triton.jit
def superposed(
    TOKENS, row, first, columns, atoms, apart, step_index, number, k0, k1, LOGN: tl.constexpr, HADAMARD: tl.constexpr
):
    """The signed sign vectors of the tokens of a row, summed: int32 [1, N], the dimensions from `first` on.

    Token m names an atom of the bin that begins at row (`independent`: codeword) m * apart."""
    N: tl.constexpr = 1 << LOGN
    WORDS: tl.constexpr = (N + 31) // 32
    WIDTH: tl.constexpr = N // WORDS
    word = first // 32 + tl.arange(0, WORDS)[None, :]
    bit = tl.arange(0, WIDTH)[None, :].to(tl.uint32)
    negative = tl.full((WORDS, WIDTH), 0, tl.int32)
    index = tl.full((1, 1), 0, tl.int64)
    for m in range(columns):
        token = tl.load(TOKENS + row.to(tl.int64) * columns + m)
        atom = token >> 1
        if HADAMARD:
            i = m * apart + (atom % atoms).to(tl.int32)
            w = row_words(first, index + atom // atoms, step_index, number, k0, k1, STREAM_BASIS, N) ^ walsh_words(word, i)
        else:  # the codeword's number wraps at 2^32 as it should
            w = row_words(first, index + m * apart + atom, step_index, number, k0, k1, STREAM_INDEPENDENT, N)
        w ^= (-(token & 1)).to(tl.uint32)
        negative += ((tl.reshape(w, (WORDS, 1)) >> bit) & 1).to(tl.int32)
    return tl.reshape(columns - 2 * negative, (1, N))


@triton.jit
def token_words(token, m, first, atoms, apart, step_index, number, k0, k1, LOGN: tl.constexpr, HADAMARD: tl.constexpr):
    """Words of the signed sign vectors of tokens `token`, numbers `m` [C], from dimension `first` on: uint32 [C, N / 32],
    one word at least."""
    N: tl.constexpr = 1 << LOGN
    WORDS: tl.constexpr = (N + 31) // 32
    atom = (token >> 1).to(tl.uint32)
    if HADAMARD:
        base = atom // atoms.to(tl.uint32)
        i = m * apart + (atom - base * atoms.to(tl.uint32)).to(tl.int32)
        word = first // 32 + tl.arange(0, WORDS)[None, :]
        w = row_words(first, base[:, None], step_index, number, k0, k1, STREAM_BASIS, N) ^ walsh_words(word, i[:, None])
    else:  # the codeword's number wraps at 2^32 as it should
        index = (m.to(tl.uint32) * apart.to(tl.uint32) + atom)[:, None]
        w = row_words(first, index, step_index, number, k0, k1, STREAM_INDEPENDENT, N)
    return w ^ (-(token & 1)).to(tl.uint32)[:, None]


@triton.jit
def negatives(w, chosen, LOGN: tl.constexpr):
    """How many of the words w [C, N / 32] for which `chosen` [C] holds have each bit: int32 [N / 32, FIELDS, EACH], the bits
    in order. C is at most 255: an int32 counts in four fields of a byte, bit b of a word in field b // 8 of number b % 8."""
    EACH: tl.constexpr = min(1 << LOGN, 8)
    FIELDS: tl.constexpr = min(1 << LOGN, 32) // EACH
    bits = ((w[:, :, None] >> tl.arange(0, EACH)[None, None, :].to(tl.uint32)) & 0x01010101).to(tl.int32)
    total = tl.sum(tl.where(chosen[:, None, None], bits, 0), axis=0)
    return (total[:, None, :] >> (8 * tl.arange(0, FIELDS))[None, :, None]) & 0xFF


@triton.jit(do_not_specialize=["columns", "atoms", "apart", "blocks", *KEY])
def adding_kernel(
    TOKENS,
    SUM,
    columns,
    atoms,
    apart,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    CHUNK: tl.constexpr,
    HADAMARD: tl.constexpr,
):
    """SUM [rows, P] int32 = the sum of sign vectors of TOKENS [rows, columns]. Grid: (rows tiles,)."""
    N: tl.constexpr = 1 << LOGN
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    row = tl.program_id(0) // TILES
    first = tl.program_id(0) % TILES * N
    number = block + row % blocks
    negative = tl.full(((N + 31) // 32, min(N, 32) // min(N, 8), min(N, 8)), 0, tl.int32)
    for begin in range(0, columns, CHUNK):
        m = begin + tl.arange(0, CHUNK)
        token = tl.load(TOKENS + row.to(tl.int64) * columns + m, mask=m < columns, other=0)
        w = token_words(token, m, first, atoms, apart, step_index, number, k0, k1, LOGN, HADAMARD)
        negative += negatives(w, m < columns, LOGN)
    at = (row.to(tl.int64) << LOGP) + first + tl.arange(0, N)
    tl.store(SUM + at, columns - 2 * tl.reshape(negative, (N,)))


def tile_bits(logp: int) -> int:
    """log2 of a tile of dimensions: small, so that one image has many programs."""
    return min(logp, max(8, logp // 2 + 1))


def chunk(columns: int, logn: int) -> int:
    """Tokens that a program adds at once to a tile of 1 << logn dimensions."""
    return max(1, min(triton.next_power_of_2(columns), SUMMED >> logn, 128))


def add(tokens: Tensor, out: Tensor, atoms: int, apart: int, key: Key, hadamard: bool) -> None:
    """tokens [rows, columns] -> out [rows, P] int32, see `adding_kernel`."""
    (rows, columns), logp = tokens.shape, out.shape[1].bit_length() - 1
    logn = tile_bits(logp)
    adding_kernel[(rows << (logp - logn),)](
        tokens,
        out,
        columns,
        atoms,
        apart,
        *key,
        LOGP=logp,
        LOGN=logn,
        CHUNK=chunk(columns, logn),
        HADAMARD=hadamard,
        num_warps=8,
        enable_fp_fusion=False,
    )
