# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Walsh-Hadamard transform in natural order, one bit of the index after the other from the lowest to the highest.

The order matters for float32: butterflies in ascending order round alike everywhere, on any device and any tiling.
"""

import triton
import triton.language as tl
from torch import Tensor

from .layout import KEY, TILE, Key, int32, warps
from .philox import STREAM_BASIS, STREAM_ROTATION, column_bits, flip, row_bits


@triton.jit
def fwht(x, ROWS: tl.constexpr, N: tl.constexpr, LOG: tl.constexpr):
    """Transforms the rows of x [ROWS, N], N = 1 << LOG, unnormalised.

    Every stage handles the lowest bit and makes it the highest, so all bits take their turn in ascending order and each
    ends where it was. With 2^k entries a thread, k stages stay in registers; between two such runs the compiler makes one
    exchange through shared memory (12 bits, 32 entries a thread: two exchanges)."""
    for _ in tl.static_range(LOG):
        a, b = tl.split(tl.reshape(x, (ROWS, N // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (ROWS, N))
    return x


@triton.jit(do_not_specialize=["rows", "base", "blocks", *KEY])
def transform_kernel(
    X,
    Y,
    rows,
    width,
    base,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOW: tl.constexpr,
    BITS: tl.constexpr,
    W: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Y[g, row] [P] = the bits LOW ... LOW + BITS - 1 of H(sign * X[row]), X: [rows, width]. Grid: (rows tiles, g).

    One program: W neighbouring columns of H = 1 << BITS entries with stride 1 << LOW. FLIP: 0 no signs, 1 the rotation,
    2 basis number base + g."""
    H: tl.constexpr = 1 << BITS
    TILES: tl.constexpr = (1 << LOGP) // (W * H)
    COLUMNS: tl.constexpr = (1 << LOW) // W
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    g = tl.program_id(1)
    first = ((tile // COLUMNS) << (LOW + BITS)) + (tile % COLUMNS) * W
    d = first + tl.arange(0, W)[:, None] + (tl.arange(0, H)[None, :] << LOW)
    x = tl.load(X + row.to(tl.int64) * width + d, mask=d < width, other=0)
    if FLIP != 0:
        stream: tl.constexpr = STREAM_ROTATION if FLIP == 1 else STREAM_BASIS
        index = tl.full((1, 1), 0, tl.int32) + (base + g)
        number = block + row % blocks
        if LOW == 0:
            x = flip(x, row_bits(first, index, step_index, number, k0, k1, stream, H))
        else:
            x = flip(x, column_bits(first, index, step_index, number, k0, k1, stream, W, H, LOW))
    x = fwht(x, W, H, BITS)
    tl.store(Y + ((g.to(tl.int64) * rows + row) << LOGP) + d, x)


HIGH_BITS = 9  # bits of one strided pass: its tile is then eight neighbours wide, one memory sector


def low_bits(logp: int, tiles: int = 4) -> int:
    """How many of the lowest bits one contiguous pass does: all where P is at most `tiles` TILE, else those of a TILE."""
    tile = TILE.bit_length() - 1
    return logp if logp < tile + tiles.bit_length() else min(logp, tile)


def high_passes(low: int, logp: int) -> list[tuple[int, int]]:
    """(lowest bit, number of bits) of the strided passes over the bits low ... logp - 1, ascending."""
    count = -(-(logp - low) // HIGH_BITS)
    edges = [low + (logp - low) * i // count for i in range(count + 1)] if count else []
    return [(a, b - a) for a, b in zip(edges, edges[1:], strict=False)]


def transform(
    x: Tensor, y: Tensor, logp: int, low: int, bits: int, key: Key, flip: int = 0, base: int = 0, count: int = 1
) -> None:
    """One pass: x [rows, width] -> y [count, rows, P], see `transform_kernel`; may work in place when count is 1."""
    rows, width = x.shape
    tall = 1 << bits
    wide = max(1, min(TILE // tall, 1 << low))
    tiles = (1 << logp) // (wide * tall)
    transform_kernel[(rows * tiles, count)](
        x,
        y,
        rows,
        width,
        int32(base),
        *key,
        LOGP=logp,
        LOW=low,
        BITS=bits,
        W=wide,
        FLIP=flip,
        num_warps=warps(wide * tall),
        enable_fp_fusion=False,
    )


def rotate(residual: Tensor, out: Tensor, logp: int, key: Key) -> None:
    """out [rows, P] = H(a * pad(residual [rows, D])) in float32, the bits in ascending order."""
    low = low_bits(logp)
    transform(residual, out, logp, 0, low, key, flip=1)
    for first, bits in high_passes(low, logp):
        transform(out, out, logp, first, bits, key)
