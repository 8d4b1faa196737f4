# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Search of law `independent`: score(k) = <u_k, v>, v = H(a * pad(r)), every codeword with P random signs of its own.

v is quantised to int8 once (one scale a row), the signs are made in registers as int8 and meet it in the integer tensor
cores: scores are exact int32, so every integer implementation picks the same tokens. A tile of codewords is made once
and scored against all images of a batch tile.

The dot sums over dimensions in any order, so v is stored in the order in which sign bits come out of the Philox words
cheaply: a chunk is 8 blocks of 128 dimensions; bit i of the four bytes of word p of the 8 blocks are 32 neighbours.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fwht import rotate
from .layout import GROUP, KEY, Key, check, check_floats, groups, log2_padded, on
from .merge import merge
from .philox import STREAM_INDEPENDENT, stream_block

CHUNK = 1024  # dimensions of 8 Philox blocks
BLOCK_K = 128  # codewords of one tile
ASM = os.environ.get("TRITON_INTERPRET") != "1"  # the interpreter has no inline assembly


@triton.jit
def to_bytes(w):
    """uint32 [K, C] -> int8 [K, 4 C], the four bytes of a word next to each other."""
    even = tl.join(w.to(tl.int8), (w >> 16).to(tl.int8))
    odd = tl.join((w >> 8).to(tl.int8), (w >> 24).to(tl.int8))
    return tl.reshape(tl.join(even, odd), (w.shape[0], 4 * w.shape[1]))


@triton.jit
def next_bit(h, ASM: tl.constexpr):
    """int8 -> its lowest bit, and h shifted right by one; four bytes an instruction where the compiler would take one.

    What the 32-bit shift brings in from the neighbour's byte stays above the lowest bit for the seven shifts made."""
    if ASM:
        e = tl.inline_asm_elementwise("and.b32 $0, $1, 0x01010101;", "=r,r", [h], dtype=tl.int8, is_pure=True, pack=4)
        h = tl.inline_asm_elementwise("shr.b32 $0, $1, 1;", "=r,r", [h], dtype=tl.int8, is_pure=True, pack=4)
    else:
        e = h & 1
        h = h >> 1
    return e, h


@triton.jit(do_not_specialize=KEY)
def search_kernel(
    Q, TOTAL, SCORES, TOKENS, batch, chunks, bins, atoms, parts, steps, units, unit, step, k0, k1,
    K: tl.constexpr, SLOT: tl.constexpr, BATCH: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid: (codeword tiles, batch tiles, units). Q: int8 [batch, units, chunks, 1024] in plane order, TOTAL: its sums.

    A tile is K / SLOT bins of SLOT codewords each; when a bin has more than K codewords, SLOT is K, and a program does
    `steps` tiles of one bin. SCORES (|score|, int32), TOKENS (int64): [parts, batch, units, bins]."""
    GROUPS: tl.constexpr = K // SLOT
    u = tl.program_id(2)
    part = tl.program_id(0) % parts
    b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    row = b.to(tl.int64) * units + u
    k = tl.arange(0, K)
    m = (tl.program_id(0) // parts) * GROUPS + k // SLOT
    lane = tl.arange(0, 32)
    total = tl.load(TOTAL + row, mask=b < batch, other=0)
    best = tl.full((GROUPS, BATCH), -1, tl.int32)
    token = tl.full((GROUPS, BATCH), 0, tl.int64)
    for s in range(steps):
        first = (part * steps + s).to(tl.int64) * SLOT
        atom = first + k % SLOT
        word = m.to(tl.int64) * atoms + atom
        negative = tl.full((K, BATCH), 0, tl.int32)  # sum of v where the sign is -1
        for c in range(chunks):
            block = c * 8 + tl.arange(0, 8)[None, :]
            words = stream_block(block, word[:, None], step, unit + u, k0, k1, STREAM_INDEPENDENT)
            at = Q + (row * chunks + c)[:, None] * 1024 + lane[None, :]
            for p in tl.static_range(4):
                h = to_bytes(words[p])
                for i in tl.static_range(8):
                    q = tl.load(at + (p * 8 + i) * 32, mask=(b < batch)[:, None], other=0)
                    e, h = next_bit(h, ASM)
                    negative = tl.dot(e, tl.trans(q), negative, out_dtype=tl.int32)
        score = total[None, :] - 2 * negative
        size = tl.where(((atom < atoms) & (m < bins))[:, None], tl.abs(score), -1)
        code = 2 * (k % SLOT)[:, None] + (score < 0).to(tl.int32)
        size = tl.reshape(size, (GROUPS, SLOT, BATCH))
        code = tl.reshape(code, (GROUPS, SLOT, BATCH))
        top = tl.max(size, axis=1)
        code = tl.min(tl.where(size == top[:, None, :], code, 2 * SLOT), axis=1)
        token = tl.where(top > best, 2 * first + code, token)
        best = tl.maximum(best, top)
    bin_ = (tl.program_id(0) // parts) * GROUPS + tl.arange(0, GROUPS)
    mask = (bin_ < bins)[:, None] & (b < batch)[None, :]
    out = ((part.to(tl.int64) * batch * units + row)[None, :]) * bins + bin_[:, None]
    tl.store(SCORES + out, best, mask=mask)
    tl.store(TOKENS + out, token, mask=mask)


def widest(device: torch.device) -> int:
    """The widest batch tile whose sums fit the registers: Hopper's matrix unit reads the images from shared memory."""
    return 64 if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9 else 32


def quantise(v: Tensor) -> Tensor:
    """rint((127 v) / max|v|) of every row, as int8: product and quotient are rounded to float32 each, then half to even."""
    top = v.abs().amax(-1, keepdim=True).expand_as(v)  # two tensors: one correctly rounded division
    return torch.where(top > 0, torch.round((127.0 * v) / top), 0.0).to(torch.int8)


def in_planes(q: Tensor) -> Tensor:
    """int8 [rows, P] -> [rows, chunks, 1024], padded with zeros: [block, word, byte, bit] -> [word, bit, block, byte]."""
    q = torch.nn.functional.pad(q, (0, -q.shape[-1] % CHUNK))
    return q.view(len(q), -1, 8, 4, 4, 8).permute(0, 1, 3, 5, 2, 4).contiguous()


def _search(v: Tensor, tokens: Tensor, batch: int, bins: int, atoms: int, key: Key) -> None:
    """v [batch * units, P] rotated residuals -> tokens [batch * units, bins]."""
    q = quantise(v)
    total = q.sum(-1, dtype=torch.int32)
    planes = in_planes(q)
    slot = min(triton.next_power_of_2(atoms), BLOCK_K)
    across = min(widest(v.device), max(16, triton.next_power_of_2(batch)))
    tiles = triton.cdiv(bins, BLOCK_K // slot)
    wide = triton.cdiv(batch, across)
    steps = triton.cdiv(atoms, BLOCK_K)
    parts = max(1, min(steps, GROUP // tokens.numel()))
    steps = triton.cdiv(steps, parts)
    parts = triton.cdiv(atoms, BLOCK_K * steps)
    scores = torch.empty((parts, *tokens.shape), dtype=torch.int32, device=v.device)
    candidates = torch.empty((parts, *tokens.shape), dtype=torch.int64, device=v.device)
    search_kernel[(tiles * parts, wide, key.units)](
        planes, total, scores, candidates, batch, planes.shape[1], bins, atoms, parts, steps, *key,
        K=BLOCK_K, SLOT=slot, BATCH=across, ASM=ASM,
        num_warps=4 if across == 16 else 8, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip
    best = torch.full(tokens.shape, -1, dtype=torch.int32, device=v.device)
    tokens.zero_()
    merge(scores, candidates, best, tokens)


def independent_select(residual: Tensor, bins: int, atoms: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """One signed codeword per bin and view: residual [B, U, D] float32 -> tokens [B, U, bins] int64 in [0, 2 atoms).

    Bin m owns codewords [m atoms, (m + 1) atoms). Finite residuals are the caller's to check, as in `hadamard_select`."""
    check(residual, residual.shape[-1], bins, atoms, None, step, seed, unit)
    check_floats("residual", residual)
    batch, units, d = residual.shape
    logp = log2_padded(d)
    tokens = torch.empty((batch, units, bins), dtype=torch.int64, device=residual.device)
    with on(residual):
        for b, u in groups(batch, units, 1 << logp):
            part = residual[b, u].reshape(-1, d)
            key = Key.of(u.stop - u.start, unit + u.start, step, seed)
            v = torch.empty((len(part), 1 << logp), dtype=torch.float32, device=residual.device)
            rotate(part, v, logp, key)
            _search(v, tokens[b, u].reshape(-1, bins), b.stop - b.start, bins, atoms, key)
    return tokens
