# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Search of kind `independent`: score(k) = <u_k, v> / sqrt(P), v = H(a * pad(r)), every codeword with P signs of its own.

v is quantised to int8 once (see `quantise`), the signs are made in registers as int8 zeros and ones and meet it in the
integer matrix units: scores are exact int32, so every integer implementation picks the same tokens. A tile of codewords is
made once and scored against all images of a batch tile; winners meet in an atomic maximum (see `winners`).

What binds: a sign costs about .3 instructions of Philox, .5 to become a byte of its own and .3 to cross to the thread that
feeds the matrix unit and around that (tests/kernels/test_triton_independent.py counts them), most on the integer pipe of
half the rate; it meets one image in 2 operations of the matrix unit. By these counts, on an H200, generation binds up to
about 32 images. From there on the matrix unit does, while another program of the same multiprocessor makes signs; what
L2 delivers, images / words of a tile in bytes a sign, comes next. One launch searches; four small ones rotate, quantise,
clear, unpack.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fwht import rotate
from .layout import KEY, Key, check, check_bias, check_floats, groups, log2_padded, on
from .philox import STREAM_INDEPENDENT, stream_draw
from .quantise import DRAW, quantise, tiles
from .winners import NOTHING, biased_key, signed_key, unpack

MOST = 1 << 24  # dimensions whose scores, at most 127 each, fit int32
ONES = 0x01010101
NEIGHBOURS = 32  # codewords of which `independent_top` keeps one score in its first pass
PACKED = 31  # bits of a score and its codeword that meet in one 32-bit maximum
LARGER = 16  # int8 residuals of one search over GROUP: every search makes all signs anew


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
def negative_sums(
    at, word, chunks, ones, number, step_index, k0, k1, K: tl.constexpr, BATCH: tl.constexpr, DRAWS: tl.constexpr
):
    """Sum of q where the sign is -1: int32 [K, BATCH] of the codewords `word` [K] and the rows of Q at `at` [BATCH]."""
    WIDTH: tl.constexpr = 128 * DRAWS
    at = at[:, None] + tl.arange(0, WIDTH)[None, :]
    negative = tl.full((K, BATCH), 0, tl.int32)
    for c in range(chunks):
        draw = c * DRAWS + tl.arange(0, DRAWS)[None, :]
        w0, w1, w2, w3 = stream_draw(draw, word[:, None], step_index, number, k0, k1, STREAM_INDEPENDENT)
        w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (K, 4 * DRAWS))
        q = tl.load(at + c * WIDTH)
        negative = tl.dot(bit_planes(w, ones, K, 4 * DRAWS), tl.trans(q), negative, out_dtype=tl.int32)
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
    blocks,
    block,
    step_index,
    k0,
    k1,
    K: tl.constexpr,
    SLOT: tl.constexpr,
    BATCH: tl.constexpr,
    DRAWS: tl.constexpr,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    BIASED: tl.constexpr,
    RUNS: tl.constexpr,
):
    """KEYS [batch, blocks, bins]: the running winners. Q [batch, blocks, chunks * 128 DRAWS].
    Grid: (tiles parts, batch tiles, blocks).

    A tile is K / SLOT bins of SLOT codewords; bins of K codewords and more have SLOT = K and `parts` tiles each. RUNS: there
    is one bin, and what is called a bin is its run base + m of SLOT codewords. BIAS [blocks, atoms] is for one bin, too."""
    GROUPS: tl.constexpr = K // SLOT
    u = tl.program_id(2)
    tile = tl.program_id(0) // parts
    first = (tl.program_id(0) % parts).to(tl.int64) * SLOT
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    row = tl.minimum(b, batch - 1) * blocks + u
    k = tl.arange(0, K)
    if RUNS:
        first += (base + tile * GROUPS).to(tl.int64) * SLOT
        word = first.to(tl.uint32) + k
    else:
        word = (tile.to(tl.int64) * GROUPS * atoms + first).to(tl.uint32) + (k // SLOT * atoms + k % SLOT).to(tl.uint32)
    at = Q + row.to(tl.int64) * chunks * (128 * DRAWS)
    negative = negative_sums(at, word, chunks, ones, block + u, step_index, k0, k1, K, BATCH, DRAWS)
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


def hopper(device: torch.device) -> bool:
    """Whether the matrix unit takes signs from registers and images from shared memory, so that wide tiles fit."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def launch_settings(device: torch.device, logp: int, batch: int) -> dict[str, int]:
    """Tile of codewords x images, Philox draws of a chunk, warps and pipeline stages."""
    if hopper(device) and batch > 32 and logp < 16:  # wider scores take too many registers
        words, images, draws, num_warps = 256, 64, 1, 4
    else:
        words, images, draws, num_warps = 128, 16 if batch <= 16 else 32, 2, 4
    return {"words": words, "images": images, "draws": draws, "warps": num_warps, "stages": 2}


class Quantised(NamedTuple):
    """Rotated residuals as int8, and how to launch what reads them."""

    q: Tensor  # int8 [B, U, chunks * 128 draws]
    total: Tensor  # int32 [B, U], the sum of a view
    scale: Tensor  # float32 [B, U], a score's true value over its integer
    logp: int
    key: Key
    settings: dict[str, int]  # see `launch_settings`

    @property
    def chunks(self) -> int:
        return self.q.shape[2] // (DRAW * self.settings["draws"])

    @property
    def launch(self) -> dict[str, int | bool]:
        names = {"DRAWS": "draws", "num_warps": "warps", "num_stages": "stages"}
        return {name: self.settings[setting] for name, setting in names.items()} | {"enable_fp_fusion": False}


def quantised(
    residual: Tensor, columns: int, block: int, step_index: int, seed: int
) -> Iterator[tuple[Quantised, slice, slice]]:
    """(rotated and quantised residuals, images, blocks) for every group of views; a view has `columns` answers. Only
    GROUP entries of a group are there in float32 at a time."""
    batch, blocks, d = residual.shape
    logp = log2_padded(d)
    size, width = 1 << logp, max(1 << logp, DRAW)
    device = residual.device
    for b, u in groups(batch, blocks, max(width, columns, 1024) // LARGER):  # 1024: the grid's axis of blocks ends at 65535
        views = residual[b, u]
        shape = (len(views), views.shape[1])
        settings = launch_settings(device, logp, shape[0])
        settings["draws"] = min(settings["draws"], width // DRAW)
        q = torch.empty((*shape, width), dtype=torch.int8, device=device)
        scale = torch.empty(shape, dtype=torch.float32, device=device)
        total = (torch.empty if tiles(width) == 1 else torch.zeros)(shape, dtype=torch.int32, device=device)
        for i, j in groups(*shape, size):
            rows = (i.stop - i.start) * (j.stop - j.start)
            v = torch.empty((rows, size), dtype=torch.float32, device=device)
            key = Key.of(j.stop - j.start, block + u.start + j.start, step_index, seed)
            rotate(views[i, j].reshape(rows, d), v, logp, key)
            quantise(v, q[i, j], total[i, j], scale[i, j], settings["draws"])
        yield Quantised(q, total, scale, logp, Key.of(shape[1], block + u.start, step_index, seed), settings), b, u


def search(x: Quantised, keys: Tensor, atoms: int, bias: Tensor | None = None, base: int | None = None) -> None:
    """The winners of the bins into keys [rows, bins]. With a base, these are the runs base, base + 1, ... of one bin."""
    words, images, bins = x.settings["words"], x.settings["images"], keys.shape[1]
    codewords = atoms if base is None else NEIGHBOURS  # of a bin or run
    slot = words if bias is not None else min(triton.next_power_of_2(codewords), words)
    bits = (2 * slot - 1).bit_length()
    parts = triton.cdiv(codewords, words)
    if parts > 1:
        keys.fill_(NOTHING)
    search_kernel[(triton.cdiv(bins, words // slot) * parts, triton.cdiv(len(x.q), images), x.key.blocks)](
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


def check_residual(residual: Tensor, bins: int, atoms: int, step_index: int, seed: int, block: int) -> None:
    """ValueError unless the search takes such a residual and numbers."""
    check(residual, residual.shape[-1], bins, atoms, None, step_index, seed, block)
    check_floats("residual", residual)
    if residual.shape[-1] > MOST:
        raise ValueError(f"kind `independent` takes at most {MOST} dimensions, got {residual.shape[-1]}")


def independent_select(residual: Tensor, bins: int, atoms: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """One signed codeword per bin and view: residual [B, U, D] float32 -> tokens [B, U, bins] int64 in [0, 2 atoms).

    Bin m owns codewords [m atoms, (m + 1) atoms). D is at most 2^24. Finite residuals are the caller's to check, as in
    `hadamard_select`."""
    check_residual(residual, bins, atoms, step_index, seed, block)
    batch, blocks, _ = residual.shape
    tokens = torch.empty((batch, blocks, bins), dtype=torch.int64, device=residual.device)
    with on(residual):
        for x, b, u in quantised(residual, bins, block, step_index, seed):
            keys = tokens[b, u].reshape(-1, bins)
            search(x, keys, atoms)
            unpack(keys)
    return tokens


def independent_biased(residual: Tensor, bias: Tensor, step_index: int, seed: int, block: int = 0) -> Tensor:
    """argmax over codewords k of score_k + bias_k, unsigned: residual [B, U, D], bias [U, K] float32 -> tokens [B, U, 1]
    int64 = 2 k, ties to the smaller. A bias of -inf excludes a codeword.

    score_k is the quantised score in true units, the integer times max|v| / float32(127 sqrt(P)); quotient, product and
    sum are rounded to float32 each."""
    check_residual(residual, 1, bias.shape[-1], step_index, seed, block)
    batch, blocks, _ = residual.shape
    check_bias(bias, blocks, bias.shape[-1])
    tokens = torch.empty((batch, blocks, 1), dtype=torch.int64, device=residual.device)
    with on(residual):
        for x, b, u in quantised(residual, 1, block, step_index, seed):
            keys = tokens[b, u].reshape(-1, 1)
            search(x, keys, bias.shape[1], bias[u])
            unpack(keys, biased=True)
    return tokens
