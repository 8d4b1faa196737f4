# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Search of law `hadamard`: score(j, i) = H(b_j * v)[i], v = H(a * pad(r)) the residual rotated once.

All P atoms of a base cost one transform, whose signs are made on the fly. Up to P = 4096 one program does whole bases;
above, strided passes through a workspace do the high bits and the same program the low ones. A program keeps the best
score of each slot over its bases and reduces slots to bins once, at the end; `merge` reduces programs to tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fwht import fwht, high_passes, low_bits, rotate, transform
from .layout import GROUP, KEY, TILE, WORKSPACE, Key, check, check_floats, groups, int32, log2_padded, on, warps
from .merge import merge
from .philox import STREAM_BASIS, row_signs

BASES = 1 << 20  # bases of one launch
PROGRAMS = 1024  # programs that are worth starting, to fill a large device a few times


@triton.jit(do_not_specialize=["base", *KEY])
def search_kernel(
    V, SCORES, TOKENS, rows, count, chunk, atoms, base, units, unit, step, k0, k1,
    LOGP: tl.constexpr, LOGN: tl.constexpr, ROWS: tl.constexpr, BIN: tl.constexpr,
):  # fmt: skip
    """Bases base ... base + count - 1, `chunk` of them (a multiple of ROWS) a program. Grid: (rows tiles, chunks).

    V: [rows, P] rotated residuals when a tile is the whole view, otherwise [count, rows, P] half transformed scores.
    SCORES (|score|, float32), TOKENS (int64): [chunks, rows, P / SLOT], the best of every SLOT neighbouring slots."""
    N: tl.constexpr = 1 << LOGN
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    SLOT: tl.constexpr = BIN if BIN < N else N
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    number = unit + row % units
    n = tl.arange(0, N)[None, :]
    rel_row = tl.arange(0, ROWS)[:, None]
    at = tile * N + n
    best = tl.full((ROWS, N), -1.0, tl.float32)
    code = tl.full((ROWS, N), 0, tl.int32)  # 2 * base + negative, bases counted from `base`
    start = tl.program_id(1) * chunk
    stop = tl.minimum(start + chunk, count)
    for j in range(start, stop, ROWS):
        rel = j + rel_row
        if TILES == 1:
            v = tl.load(V + (row.to(tl.int64) << LOGP) + at)
            x = tl.where(row_signs(0, base + rel, step, number, k0, k1, STREAM_BASIS, N) != 0, -v, v)
        else:
            x = tl.load(V + ((row + j * rows).to(tl.int64) << LOGP) + at)
        x = fwht(x, ROWS, N, LOGN)
        size = tl.abs(x)
        size = tl.where(size >= 0, size, 0.0)  # a NaN must not select a slot that does not exist
        size = tl.where(rel < stop, size, -1.0)
        better = size > best  # the earlier base wins a tie
        best = tl.where(better, size, best)
        code = tl.where(better, 2 * rel + (x < 0).to(tl.int32), code)
    i = at % BIN
    best = tl.where(i < atoms, best, -1.0)
    atom = ((code >> 1).to(tl.int64) + base.to(tl.uint32).to(tl.int64)) * atoms + i
    token = 2 * atom + (code & 1)
    best = tl.reshape(tl.permute(tl.reshape(best, (ROWS, N // SLOT, SLOT)), (1, 0, 2)), (N // SLOT, ROWS * SLOT))
    token = tl.reshape(tl.permute(tl.reshape(token, (ROWS, N // SLOT, SLOT)), (1, 0, 2)), (N // SLOT, ROWS * SLOT))
    top = tl.max(best, axis=1)
    token = tl.min(tl.where(best == top[:, None], token, 0x7FFFFFFFFFFFFFFF), axis=1)
    out = (tl.program_id(1).to(tl.int64) * rows + row) * ((1 << LOGP) // SLOT) + tile * (N // SLOT)
    out += tl.arange(0, N // SLOT)
    tl.store(SCORES + out, top)
    tl.store(TOKENS + out, token)


def _search(v: Tensor, tokens: Tensor, logp: int, bins: int, atoms: int, bases: int, key: Key) -> None:
    """v [rows, P] rotated residuals -> tokens [rows, bins]."""
    rows, logn = len(v), low_bits(logp)
    n, size = 1 << logn, 1 << logp
    tiles, bin_size = size // n, size // bins
    slots = size // min(bin_size, n)
    best = torch.full((rows, bins), -1.0, dtype=torch.float32, device=v.device)
    tokens.zero_()
    group = min(bases, BASES if tiles == 1 else max(1, WORKSPACE // v.numel()))
    scores = v if tiles == 1 else torch.empty((group, rows, size), dtype=torch.float32, device=v.device)
    together = min(TILE // n, triton.next_power_of_2(group)) if tiles == 1 else 1  # bases in one tile
    for base in range(0, bases, group):
        count = min(group, bases - base)
        for k, (low, bits) in enumerate(high_passes(logp)):
            if k == 0:
                transform(v, scores, logp, low, bits, key, flip=2, base=base, count=count)
            else:
                flat = scores[:count].view(-1, size)
                transform(flat, flat, logp, low, bits, key)
        steps = -(-count // together)
        chunks = max(1, min(steps, PROGRAMS // (rows * tiles), GROUP // (rows * slots)))
        chunk = -(-steps // chunks) * together
        chunks = -(-count // chunk)
        part_scores = torch.empty((chunks, rows, slots), dtype=torch.float32, device=v.device)
        part_tokens = torch.empty((chunks, rows, slots), dtype=torch.int64, device=v.device)
        search_kernel[(rows * tiles, chunks)](
            scores, part_scores, part_tokens, rows, count, chunk, atoms, int32(base), *key,
            LOGP=logp, LOGN=logn, ROWS=together, BIN=bin_size, num_warps=warps(together * n), enable_fp_fusion=False,
        )  # fmt: skip
        merge(part_scores, part_tokens, best, tokens)


def hadamard_select(residual: Tensor, bins: int, atoms: int, bases: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """One signed atom per bin and view: residual [B, U, D] float32 -> tokens [B, U, bins] int64 in [0, 2 bases atoms).

    View u draws from the streams of unit `unit + u`. The residual must be finite; that is the caller's to check (once
    an encode, on the device): here a NaN or Inf gives some token in range."""
    check(residual, residual.shape[-1], bins, atoms, bases, step, seed, unit)
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
            _search(v, tokens[b, u].reshape(-1, bins), logp, bins, atoms, bases, key)
    return tokens
