# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportAssignmentType=false
"""Philox4x32-10 and the random signs made from it, for use inside the other kernels.

counter = (draw, index, step_index, stream + 256 block), key = the seed, low word first. Sign d of a stream is bit d % 32 of
word d // 32, and word w is word w % 4 of draw w // 4.

step_index, block, base, k0 and k1 arrive as int32 (see `layout.Key`) and are read as the uint32 of the same bits.
"""

import triton
import triton.language as tl

STREAM_ROTATION = tl.constexpr(1)
STREAM_BASIS = tl.constexpr(2)
STREAM_INDEPENDENT = tl.constexpr(3)
STREAM_ARRIVAL = tl.constexpr(4)
STREAM_CHUNK = tl.constexpr(5)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four uint32 counter words of one shape and two uint32 keys -> four uint32 words of that shape."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53  # one 64-bit product gives both halves
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = (p1 & 0xFFFFFFFF).to(tl.uint32)
        c3 = (p0 & 0xFFFFFFFF).to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def stream_draw(draw, index, step_index, block, k0, k1, STREAM: tl.constexpr):
    """The four words of draw `draw` of entry `index`; the two broadcast to the shape of the answer."""
    zero = (draw * 0 + index * 0).to(tl.uint32)
    c1 = index.to(tl.uint32) + zero
    c2 = step_index.to(tl.uint32) + zero
    c3 = (block * 256 + STREAM).to(tl.uint32) + zero
    return philox4x32(draw.to(tl.uint32) + zero, c1, c2, c3, k0.to(tl.uint32), k1.to(tl.uint32))


@triton.jit
def sign_words(word, index, step_index, block, k0, k1, STREAM: tl.constexpr):
    """Word number `word` of entry `index`: uint32 of the shape to which the two broadcast. Makes whole draws for it."""
    w0, w1, w2, w3 = stream_draw(word // 4, index, step_index, block, k0, k1, STREAM)
    pick = word % 4
    return tl.where(pick < 2, tl.where(pick == 0, w0, w1), tl.where(pick == 2, w2, w3))


@triton.jit
def row_words(first, index, step_index, block, k0, k1, STREAM: tl.constexpr, N: tl.constexpr):
    """The words that hold sign bits first ... first + N - 1 of the entries `index` [ROWS, 1]: uint32 [ROWS, N / 32],
    one word at least. N is a power of two and `first`, a scalar, a multiple of it."""
    if N < 128:
        WORDS: tl.constexpr = (N + 31) // 32
        return sign_words(first // 32 + tl.arange(0, WORDS)[None, :], index, step_index, block, k0, k1, STREAM)
    else:
        draw = first // 128 + tl.arange(0, N // 128)[None, :]
        w0, w1, w2, w3 = stream_draw(draw, index, step_index, block, k0, k1, STREAM)
        return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (index.shape[0], N // 32))


@triton.jit
def row_bits(first, index, step_index, block, k0, k1, STREAM: tl.constexpr, N: tl.constexpr):
    """Sign bits first ... first + N - 1 of the entries `index` [ROWS, 1]: uint32 [ROWS, N], at bit 31 (others: noise)."""
    w = row_words(first, index, step_index, block, k0, k1, STREAM, N)
    WIDTH: tl.constexpr = min(N, 32)
    return tl.reshape(w[:, :, None] << (31 - tl.arange(0, WIDTH)).to(tl.uint32)[None, None, :], (w.shape[0], N))


@triton.jit
def flip(x, bits):
    """float32 x with its sign changed where bit 31 of `bits` is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def column_bits(
    first, index, step_index, block, k0, k1, STREAM: tl.constexpr, W: tl.constexpr, H: tl.constexpr, LOW: tl.constexpr
):
    """Sign bits of the dimensions first + w + (h << LOW) of entry `index` [1, 1]: uint32 [W, H], at bit 31.

    W and H are powers of two, W <= 1 << LOW, LOW >= 5, and `first`, a scalar, a multiple of W."""
    WORDS: tl.constexpr = (W + 31) // 32
    WIDTH: tl.constexpr = W // WORDS
    word = first // 32 + tl.arange(0, WORDS)[:, None] + (tl.arange(0, H)[None, :] << (LOW - 5))
    w = sign_words(word, index, step_index, block, k0, k1, STREAM)
    shift = (31 - first % 32 - tl.arange(0, WIDTH)).to(tl.uint32)
    return tl.reshape(w[:, None, :] << shift[None, :, None], (W, H))
