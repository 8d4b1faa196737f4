# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
"""Search of kind `hadamard` on the tensor cores, for one bin of all P atoms: the same tokens in fewer instructions.

A transform of P = R C entries is two products with Walsh matrices, H_R X H_C. In fp16 with fp32 sums its scores are wrong
by no more than `slack` (below), so they only say which bases may hold the winner: those whose largest |score| comes
within twice that of the best, one or two of a chunk. These are transformed again by butterflies in float32, and that
decides. So the tokens are those of `hadamard.search_kernel`, bit for bit.

The bound, in units of sqrt(P) scores: rounding to fp16 (unit roundoff u = 2^-11) errs by u |x| an entry. In the first
operand that adds up to at most u sum |x| <= u sqrt(P) |v|, in the second to u sum_c |(H x)_ic| <= u sqrt(C) sqrt(R) |v|,
together 2 u sqrt(P) |v|. The margin of a tenth covers the float32 sums and entries below the range of fp16.
"""

import triton
import triton.language as tl

from .fwht import fwht
from .layout import KEY
from .philox import STREAM_BASIS, flip, row_bits
from .winners import signed_key

LEAST, MOST = 12, 14  # log2 of the P that it serves
CHUNK = 512  # bases of one program at most


@triton.jit
def walsh(n: tl.constexpr):
    """The n x n Walsh-Hadamard matrix, (-1)^popcount(i & j), n <= 256, as fp16."""
    v = tl.arange(0, n)[:, None] & tl.arange(0, n)[None, :]
    v ^= v >> 4
    v ^= v >> 2
    v ^= v >> 1
    return (1 - 2 * (v & 1)).to(tl.float16)


@triton.jit(do_not_specialize=["count", "chunk", "base", "blocks", *KEY])
def matrix_kernel(V, KEYS, count, chunk, base, blocks, block, step_index, k0, k1, LOGP: tl.constexpr, CHUNK: tl.constexpr):
    """KEYS [rows], the running winners, against bases base ... base + count - 1, `chunk` <= CHUNK of them a program.

    V [rows, P] rotated residuals. Grid: (rows, chunks)."""
    P: tl.constexpr = 1 << LOGP
    R: tl.constexpr = 1 << (LOGP // 2)
    C: tl.constexpr = P // R
    row = tl.program_id(0)
    number = block + row % blocks
    start = tl.program_id(1) * chunk
    stop = tl.minimum(start + chunk, count)
    index = tl.full((1, 1), 0, tl.int32) + base
    v = tl.load(V + (row.to(tl.int64) << LOGP) + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :])
    # The power of two that brings the largest entry into [1, 2).
    largest = tl.max(tl.max(tl.abs(v), axis=1), axis=0).to(tl.int32, bitcast=True) & 0x7F800000
    v *= tl.maximum(0x7F000000 - largest, 0x00800000).to(tl.float32, bitcast=True)
    squares = tl.sum(tl.sum(v * v, axis=1), axis=0)
    slack = 1.1 * 2 * tl.sqrt(squares * P) / 2048

    left, right = walsh(R), walsh(C)
    rel = tl.arange(0, CHUNK)
    maxima = tl.full((CHUNK,), -1.0, tl.float32)
    for j in range(start, stop):
        bits = row_bits(0, index + j, step_index, number, k0, k1, STREAM_BASIS, P)
        x = flip(v, tl.reshape(bits, (R, C))).to(tl.float16)
        x = tl.dot(tl.dot(left, x).to(tl.float16), right)
        maxima = tl.where(rel == j - start, tl.max(tl.max(tl.abs(x), axis=1), axis=0), maxima)

    least = tl.max(maxima, axis=0) - 2 * slack
    n = tl.arange(0, P)[None, :]
    v = tl.load(V + (row.to(tl.int64) << LOGP) + n)
    first_base = base.to(tl.uint32).to(tl.int64) + start
    best = signed_key(squares * 0, 2 * P * first_base)  # where no score is a number above 0
    j = tl.min(tl.where((maxima >= least) & (maxima > 0), rel, CHUNK), axis=0)
    while j < CHUNK:
        x = fwht(flip(v, row_bits(0, index + start + j, step_index, number, k0, k1, STREAM_BASIS, P)), 1, P, LOGP)
        top = tl.max(tl.reshape(tl.abs(x), (P,)), axis=0)
        place = tl.min(tl.reshape(tl.where(tl.abs(x) == top, 2 * n + (x < 0).to(tl.int32), 2 * P), (P,)), axis=0)
        best = tl.maximum(best, signed_key(top, 2 * P * (first_base + j) + place))
        maxima = tl.where(rel == j, -1.0, maxima)
        j = tl.min(tl.where((maxima >= least) & (maxima > 0), rel, CHUNK), axis=0)
    tl.atomic_max(KEYS + row, best, sem="relaxed")
