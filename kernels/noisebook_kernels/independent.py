# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Search of law `independent`: score(k) = <u_k, v> / sqrt(P), v = H(a * pad(r)), every codeword with P signs of its own.

v is quantised to int8 once, the signs are made in registers as int8 zeros and ones and meet it in the integer matrix
units: scores are exact int32, so every integer implementation picks the same tokens. A tile of codewords is made once
and scored against all images of a batch tile; winners meet in an atomic maximum (see `winners`).

What binds: a sign costs about .3 instructions of Philox, .5 to become a byte of its own and .3 to cross to the thread that
feeds the matrix unit and around that (tests/kernels/test_triton_independent.py counts them), most on the integer pipe of
half the rate; it meets one image in 2 operations of the matrix unit. By these counts, on an H200, generation binds up to
about 32 images. From there on the matrix unit does, while another program of the same multiprocessor makes signs; what
L2 delivers, images / words of a tile in bytes a sign, comes next. One launch searches; four small ones rotate, quantise,
clear, unpack.

The dot sums over dimensions in any order, so v is stored in the order in which bits come out of the words cheaply: a
chunk is `blocks` Philox blocks of 128 dimensions, and it holds the lowest bits of all its bytes, then the next ones.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fwht import rotate
from .layout import KEY, TILE, Key, check, check_bias, check_count, check_floats, groups, log2_padded, on, warps
from .philox import STREAM_INDEPENDENT, stream_block
from .tuning import settings
from .winners import NOTHING, biased_key, keep_top, signed_key, unpack

BLOCK = 128  # dimensions of a Philox block
MOST = 1 << 24  # dimensions whose scores, at most 127 each, fit int32
ONES = 0x01010101
NEIGHBOURS = 32  # codewords of which `independent_top` keeps one score in its first pass
PACKED = 31  # bits of a score and its codeword that meet in one 32-bit maximum
LARGER = 16  # int8 residuals of one search over GROUP: every search makes all signs anew
HELD = 1 << 20  # 64-bit keys that `independent_top` holds at once
CANDIDATES = [
    {"words": w, "images": i, "blocks": c, "warps": n, "stages": s}
    for w, i, c, n in [
        (128, 16, 2, 4),
        (256, 16, 1, 4),
        (128, 32, 2, 4),
        (256, 32, 1, 4),
        (128, 64, 2, 4),
        (256, 64, 1, 4),
        (256, 64, 2, 8),
        (128, 128, 1, 4),
        (256, 128, 1, 8),
    ]
    for s in (2, 3)
]


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


@triton.jit
def bit_planes(w, ones, K: tl.constexpr, W: tl.constexpr):
    """uint32 [K, W] -> int8 [K, 32 W]: the lowest bits of the 4 W bytes of a row, then the next ones.

    `ones`, ONES, is an argument because of what compilers do with a constant: they find that the mask changes nothing in
    the last plane's high byte, and take all its words apart."""
    e = (w[:, None, :] >> tl.arange(0, 8)[None, :, None].to(tl.uint32)) & ones.to(tl.uint32)
    even = tl.join(e.to(tl.int8), (e >> 16).to(tl.int8))
    odd = tl.join((e >> 8).to(tl.int8), (e >> 24).to(tl.int8))
    return tl.reshape(tl.join(even, odd), (K, 32 * W))


@triton.jit
def negative_sums(at, word, chunks, ones, number, step, k0, k1, K: tl.constexpr, BATCH: tl.constexpr, BLOCKS: tl.constexpr):
    """Sum of q where the sign is -1: int32 [K, BATCH] of the codewords `word` [K] and the rows of Q at `at` [BATCH]."""
    WIDTH: tl.constexpr = 128 * BLOCKS
    at = at[:, None] + tl.arange(0, WIDTH)[None, :]
    negative = tl.full((K, BATCH), 0, tl.int32)
    for c in range(chunks):
        block = c * BLOCKS + tl.arange(0, BLOCKS)[None, :]
        w0, w1, w2, w3 = stream_block(block, word[:, None], step, number, k0, k1, STREAM_INDEPENDENT)
        w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (K, 4 * BLOCKS))
        q = tl.load(at + c * WIDTH)
        negative = tl.dot(bit_planes(w, ones, K, 4 * BLOCKS), tl.trans(q), negative, out_dtype=tl.int32)
    return negative


@triton.jit(do_not_specialize=["batch", "base", "ones", *KEY])
def search_kernel(
    Q,
    TOTAL,
    SCALE,
    BIAS,
    KEYS,
    batch,
    chunks,
    bins,
    atoms,
    base,
    parts,
    ones,
    units,
    unit,
    step,
    k0,
    k1,
    K: tl.constexpr,
    SLOT: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCKS: tl.constexpr,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    BIASED: tl.constexpr,
    RUNS: tl.constexpr,
):
    """KEYS [batch, units, bins]: the running winners. Q [batch, units, chunks * 128 BLOCKS].
    Grid: (tiles parts, batch tiles, units).

    A tile is K / SLOT bins of SLOT codewords; bins of K codewords and more have SLOT = K and `parts` tiles each. RUNS: there
    is one bin, and what is called a bin is its run base + m of SLOT codewords. BIAS [units, atoms] is for one bin, too."""
    GROUPS: tl.constexpr = K // SLOT
    u = tl.program_id(2)
    tile = tl.program_id(0) // parts
    first = (tl.program_id(0) % parts).to(tl.int64) * SLOT
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    row = tl.minimum(b, batch - 1) * units + u
    k = tl.arange(0, K)
    if RUNS:
        first += (base + tile * GROUPS).to(tl.int64) * SLOT
        word = first.to(tl.uint32) + k
    else:
        word = (tile.to(tl.int64) * GROUPS * atoms + first).to(tl.uint32) + (k // SLOT * atoms + k % SLOT).to(tl.uint32)
    at = Q + row.to(tl.int64) * chunks * (128 * BLOCKS)
    negative = negative_sums(at, word, chunks, ones, unit + u, step, k0, k1, K, BATCH, BLOCKS)
    score = tl.load(TOTAL + row)[None, :] - 2 * negative
    left = tl.minimum(atoms - first, K).to(tl.int32)
    valid = k < left if RUNS else (k % SLOT < left) & (k // SLOT < bins - tile * GROUPS)
    group = tl.arange(0, GROUPS)
    if BIASED:
        bias = tl.load(BIAS + (u.to(tl.int64) * atoms + first) + k, mask=valid, other=-float("inf"))
        value = score.to(tl.float32) * tl.load(SCALE + row)[None, :] + bias[:, None]
        value = tl.where(value == value, value, -float("inf"))  # a NaN must not choose an atom that does not exist
        top = tl.max(value, axis=0)
        i = tl.min(tl.where(value == top[None, :], k[:, None], K - 1), axis=0)
        key = biased_key(top, first + i)[None, :]
    else:
        if WIDE:
            size = tl.where(valid[:, None], tl.abs(score), -1)
            top, i = tl.max(tl.reshape(size, (GROUPS, SLOT, BATCH)), axis=1, return_indices=True)
            chosen = tl.arange(0, SLOT)[None, :, None] == i[:, None, :]
            picked = tl.sum(tl.where(chosen, tl.reshape(score, (GROUPS, SLOT, BATCH)), 0), axis=1)
            code = 2 * i + (picked < 0).to(tl.int32)
        else:  # one maximum of |score| above the code, which is turned so that the smaller one wins
            turned = tl.where(valid, (2 * SLOT - 1) - 2 * (k % SLOT), -0x80000000)
            both = (tl.abs(score) << BITS) + turned[:, None] + (score >> 31)
            both = tl.max(tl.reshape(both, (GROUPS, SLOT, BATCH)), axis=1)
            top, code = both >> BITS, (2 * SLOT - 1) - (both & (2 * SLOT - 1))
        token = 2 * first + (2 * SLOT * group[:, None] if RUNS else 0) + code
        key = tl.where(top >= 0, signed_key(top, token), -0x8000000000000000)
    bin_ = tile * GROUPS + group
    at = KEYS + (row.to(tl.int64) * bins)[None, :] + bin_[:, None]
    mask = (bin_ < bins)[:, None] & (b < batch)[None, :]
    if parts == 1:
        tl.store(at, key, mask=mask)
    else:
        seen = tl.load(at, mask=mask, other=0)  # perhaps no longer true, but never too large: spares most atomics
        tl.atomic_max(at, key, mask=mask & (key > seen), sem="relaxed")


@triton.jit(do_not_specialize=["count", "limit", "tiles", "ones", *KEY])
def rescore_kernel(
    Q,
    TOTAL,
    WINNERS,
    KEYS,
    chunks,
    count,
    limit,
    tiles,
    ones,
    units,
    unit,
    step,
    k0,
    k1,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):
    """KEYS [rows, count, NEIGHBOURS] of all codewords near the ones in WINNERS [rows, count], themselves keys.

    Grid: (rows tiles,). The matrix unit's narrowest tile takes 16 images; here 15 of them are the same one."""
    row = tl.program_id(0).to(tl.int64) // tiles
    k = tl.program_id(0) % tiles * K + tl.arange(0, K)
    mask = k < count * NEIGHBOURS
    winner = tl.load(WINNERS + row * count + k // NEIGHBOURS, mask=mask, other=-1)
    group = (0x1FFFFFFFF - (winner & 0x1FFFFFFFF)) // (2 * NEIGHBOURS)
    word = group * NEIGHBOURS + k % NEIGHBOURS
    at = Q + row * chunks * (128 * BLOCKS) + tl.full((16,), 0, tl.int64)
    negative = negative_sums(at, word, chunks, ones, unit + (row % units).to(tl.int32), step, k0, k1, K, 16, BLOCKS)
    score = tl.load(TOTAL + row) - 2 * tl.max(negative, axis=1)
    key = signed_key(tl.abs(score), 2 * word + (score < 0).to(tl.int64))
    key = tl.where(word < limit, key, -0x8000000000000000)
    tl.store(KEYS + row * count * NEIGHBOURS + k, key, mask=mask)


def hopper(device: torch.device) -> bool:
    """Whether the matrix unit takes signs from registers and images from shared memory, so that wide tiles fit."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def defaults(device: torch.device, logp: int, batch: int) -> dict[str, int]:
    """Tile of codewords x images, Philox blocks of a chunk, warps and pipeline stages."""
    if hopper(device) and batch > 32 and logp < 16:  # wider scores take too many registers
        words, images, blocks, num_warps = 256, 64, 1, 4
    else:
        words, images, blocks, num_warps = 128, 16 if batch <= 16 else 32, 2, 4
    return {"words": words, "images": images, "blocks": blocks, "warps": num_warps, "stages": 2}


class Quantised(NamedTuple):
    """Rotated residuals as int8, and how to launch what reads them."""

    q: Tensor  # int8 [B, U, chunks * 128 blocks]
    total: Tensor  # int32 [B, U], the sum of a view
    scale: Tensor  # float32 [B, U], a score's true value over its integer
    logp: int
    key: Key
    tuned: dict[str, int]

    @property
    def chunks(self) -> int:
        return self.q.shape[2] // (BLOCK * self.tuned["blocks"])

    @property
    def launch(self) -> dict[str, int | bool]:
        names = {"BLOCKS": "blocks", "num_warps": "warps", "num_stages": "stages"}
        return {name: self.tuned[setting] for name, setting in names.items()} | {"enable_fp_fusion": False}


def _quantised(residual: Tensor, columns: int, unit: int, step: int, seed: int) -> Iterator[tuple[Quantised, slice, slice]]:
    """(rotated and quantised residuals, images, units) for every group of views; `columns` answers a view. Only
    GROUP entries of it are there in float32 at a time."""
    batch, units, d = residual.shape
    logp = log2_padded(d)
    size, width = 1 << logp, max(1 << logp, BLOCK)
    n = min(width, TILE)
    device = residual.device
    for b, u in groups(batch, units, max(width, columns, 1024) // LARGER):  # 1024: a grid has at most 65535 units
        views = residual[b, u]
        shape = (len(views), views.shape[1])
        tuned = settings("independent", device, defaults(device, logp, shape[0]), P=size, B=shape[0])
        tuned["blocks"] = min(tuned["blocks"], width // BLOCK)
        q = torch.empty((*shape, width), dtype=torch.int8, device=device)
        scale = torch.empty(shape, dtype=torch.float32, device=device)
        total = (torch.empty if width == n else torch.zeros)(shape, dtype=torch.int32, device=device)
        for i, j in groups(*shape, size):
            rows = (i.stop - i.start) * (j.stop - j.start)
            v = torch.empty((rows, size), dtype=torch.float32, device=device)
            rotate(views[i, j].reshape(rows, d), v, logp, Key.of(j.stop - j.start, unit + u.start + j.start, step, seed))
            most = v if width == n else torch.linalg.vector_norm(v, math.inf, dim=-1)
            quantise_kernel[(rows * (width // n),)](
                v,
                most,
                q[i, j],
                total[i, j],
                scale[i, j],
                127 * math.sqrt(size),
                P=size,
                N=n,
                TILES=width // n,
                BYTES=BLOCK // 8 * tuned["blocks"],
                num_warps=warps(n),
                enable_fp_fusion=False,
            )
        yield Quantised(q, total, scale, logp, Key.of(shape[1], unit + u.start, step, seed), tuned), b, u


def _search(x: Quantised, keys: Tensor, atoms: int, bias: Tensor | None = None, base: int | None = None) -> None:
    """The winners of the bins into keys [rows, bins]. With a base, these are the runs base, base + 1, ... of one bin."""
    words, images, bins = x.tuned["words"], x.tuned["images"], keys.shape[1]
    codewords = atoms if base is None else NEIGHBOURS  # of a bin or run
    slot = words if bias is not None else min(triton.next_power_of_2(codewords), words)
    bits = (2 * slot - 1).bit_length()
    parts = triton.cdiv(codewords, words)
    if parts > 1:
        keys.fill_(NOTHING)
    search_kernel[(triton.cdiv(bins, words // slot) * parts, triton.cdiv(len(x.q), images), x.key.units)](
        x.q,
        x.total,
        x.scale,
        x.scale if bias is None else bias,
        keys,
        len(x.q),
        x.chunks,
        bins,
        atoms,
        base or 0,
        parts,
        ONES,
        *x.key,
        K=words,
        SLOT=slot,
        BATCH=images,
        BITS=bits,
        WIDE=x.logp + 7 + bits > PACKED,
        BIASED=bias is not None,
        RUNS=base is not None,
        **x.launch,
    )


def _top(x: Quantised, count: int, atoms: int) -> Tensor:
    """Keys [rows, count] of the best codewords, best first.

    The best `count` codewords lie in the `count` best runs of NEIGHBOURS: the first pass keeps one key of a run, the
    second scores the runs that are left."""
    rows, runs, best = x.total.numel(), triton.cdiv(atoms, NEIGHBOURS), None
    some = max(1, HELD // rows)
    for base in range(0, runs, some):
        keys = torch.empty((rows, min(some, runs - base)), dtype=torch.int64, device=x.q.device)
        _search(x, keys, atoms, base=base)
        best = keep_top(best, keys, count)
    assert best is not None  # there is at least one codeword
    winners, best, some = best, None, max(1, HELD // (rows * NEIGHBOURS))
    for base in range(0, winners.shape[1], some):
        part = winners[:, base : base + some].contiguous()
        runs = part.shape[1]
        keys = torch.empty((rows, runs * NEIGHBOURS), dtype=torch.int64, device=x.q.device)
        tiles = triton.cdiv(runs * NEIGHBOURS, 128)
        rescore_kernel[(rows * tiles,)](
            x.q,
            x.total,
            part,
            keys,
            x.chunks,
            runs,
            atoms,
            tiles,
            ONES,
            *x.key,
            K=128,
            NEIGHBOURS=NEIGHBOURS,
            **{**x.launch, "num_warps": 4},
        )
        best = keep_top(best, keys, count)
    assert best is not None
    return best


def _check(residual: Tensor, bins: int, atoms: int, step: int, seed: int, unit: int) -> None:
    check(residual, residual.shape[-1], bins, atoms, None, step, seed, unit)
    check_floats("residual", residual)
    if residual.shape[-1] > MOST:
        raise ValueError(f"law `independent` takes at most {MOST} dimensions, got {residual.shape[-1]}")


def independent_select(residual: Tensor, bins: int, atoms: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """One signed codeword per bin and view: residual [B, U, D] float32 -> tokens [B, U, bins] int64 in [0, 2 atoms).

    Bin m owns codewords [m atoms, (m + 1) atoms). D is at most 2^24. Finite residuals are the caller's to check, as in
    `hadamard_select`."""
    _check(residual, bins, atoms, step, seed, unit)
    batch, units, _ = residual.shape
    tokens = torch.empty((batch, units, bins), dtype=torch.int64, device=residual.device)
    with on(residual):
        for x, b, u in _quantised(residual, bins, unit, step, seed):
            keys = tokens[b, u].reshape(-1, bins)
            _search(x, keys, atoms)
            unpack(keys)
    return tokens


def independent_biased(residual: Tensor, bias: Tensor, step: int, seed: int, unit: int = 0) -> Tensor:
    """argmax over codewords k of score_k + bias_k, unsigned: residual [B, U, D], bias [U, K] float32 -> tokens [B, U, 1]
    int64 = 2 k, ties to the smaller. A bias of -inf excludes a codeword.

    score_k is the quantised score in true units, the integer times max|v| / float32(127 sqrt(P)); quotient, product and
    sum are rounded to float32 each."""
    _check(residual, 1, bias.shape[-1], step, seed, unit)
    batch, units, _ = residual.shape
    check_bias(bias, units, bias.shape[-1])
    tokens = torch.empty((batch, units, 1), dtype=torch.int64, device=residual.device)
    with on(residual):
        for x, b, u in _quantised(residual, 1, unit, step, seed):
            keys = tokens[b, u].reshape(-1, 1)
            _search(x, keys, bias.shape[1], bias[u])
            unpack(keys, biased=True)
    return tokens


def independent_top(residual: Tensor, count: int, atoms: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """The `count` signed codewords of largest |score| in one bin, best first, ties to the smaller codeword (Turbo-DDCM):
    residual [B, U, D] float32 -> tokens [B, U, count] int64 in [0, 2 atoms)."""
    _check(residual, 1, atoms, step, seed, unit)
    check_count(count, atoms)
    batch, units, _ = residual.shape
    tokens = torch.empty((batch, units, count), dtype=torch.int64, device=residual.device)
    with on(residual):
        for x, b, u in _quantised(residual, count, unit, step, seed):
            keys = tokens[b, u].reshape(-1, count)
            keys.copy_(_top(x, count, atoms))
            unpack(keys)
    return tokens
