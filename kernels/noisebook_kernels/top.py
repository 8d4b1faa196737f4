# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""The `count` best atoms of one bin, best first, of both kinds: rule `top` (Turbo-DDCM).

Atoms and codewords stand in runs of neighbours, and the `count` best lie in the `count` best runs: so a first search
keeps one key of each run, torch's topk finds the best runs, and a second search scores only those. To sort all keys
would take longer than all searches together.

`hadamard`: RUN rows of a base. The second search transforms a whole base for each run that is left. So where these are
many beside the bases, or a view does not fit one program, topk gets the keys of all atoms.
`independent`: NEIGHBOURS codewords.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .hadamard import ENTRIES, PROGRAMS, Cut, base_scores, half_scores, rotated
from .independent import NEIGHBOURS, ONES, Quantised, check_residual, negative_sums, quantised, search
from .layout import KEY, Key, check, check_count, check_floats, int32, log2_padded, on
from .winners import signed_key, unpack

HELD = 1 << 20  # 64-bit keys that are there at once
RUN = 64  # atoms of which `hadamard_top` keeps one score in its first pass


def keep_top(best: Tensor | None, keys: Tensor, count: int) -> Tensor:
    """The `count` largest of `best` [rows, <= count] and `keys` [rows, n], in order; no two keys are equal."""
    keys = keys if best is None else torch.cat([best, keys], 1)
    return keys.topk(min(count, keys.shape[1]), dim=1, sorted=True)[0]


@triton.jit(do_not_specialize=["rows", "count", "atoms", "base", "blocks", *KEY])
def keys_kernel(
    V,
    KEYS,
    rows,
    count,
    atoms,
    base,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """KEYS [rows, count, atoms] of all signed atoms of `count` bases in one bin. Grid: (rows tiles, bases / ROWS)."""
    N: tl.constexpr = 1 << LOGN
    row = tl.program_id(0) >> (LOGP - LOGN)
    tile = tl.program_id(0) & ((1 << (LOGP - LOGN)) - 1)
    n = tl.arange(0, N)[None, :]
    j = tl.program_id(1) * ROWS
    rel = j + tl.arange(0, ROWS)[:, None]
    v = tl.load(V + (row.to(tl.int64) << LOGP) + n) if LOGN == LOGP else n
    x = base_scores(V, v, row, rows, tile, j, count, base, block + row % blocks, step_index, k0, k1, LOGP, LOGN, ROWS)
    i = tile * N + n
    token = 2 * ((base.to(tl.uint32).to(tl.int64) + rel) * atoms + i) + (x < 0).to(tl.int64)
    size = tl.where(tl.abs(x) >= 0, tl.abs(x), 0.0)
    out = (row.to(tl.int64) * count + rel) * atoms + i
    tl.store(KEYS + out, signed_key(size, token), mask=(rel < count) & (i < atoms))


@triton.jit(do_not_specialize=["rows", "count", "chunk", "atoms", "runs", "base", "blocks", *KEY])
def runs_kernel(
    V,
    KEYS,
    rows,
    count,
    chunk,
    atoms,
    runs,
    base,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    ROWS: tl.constexpr,
    RUN: tl.constexpr,
    FULL: tl.constexpr,
):
    """KEYS [rows, count, runs] of the runs of `count` bases: the largest |score| of a run above its number, which grows with
    its tokens. Grid: (rows, chunks), `chunk` bases (a multiple of ROWS) a program. FULL: all P rows of a base are atoms."""
    N: tl.constexpr = 1 << LOGP
    row = tl.program_id(0)
    number = block + row % blocks
    n = tl.arange(0, N)[None, :]
    run = tl.arange(0, N // RUN)[None, :]
    start = tl.program_id(1) * chunk
    stop = tl.minimum(start + chunk, count)
    first_base = base.to(tl.uint32).to(tl.int64)
    v = tl.load(V + (row.to(tl.int64) << LOGP) + n)
    for j in range(start, stop, ROWS):
        rel = j + tl.arange(0, ROWS)[:, None]
        x = base_scores(V, v, row, rows, 0, j, stop, base, number, step_index, k0, k1, LOGP, LOGP, ROWS)
        size = tl.abs(x) if FULL else tl.where(n < atoms, tl.abs(x), 0.0)
        size = tl.max(tl.reshape(size, (ROWS, N // RUN, RUN)), axis=2)
        size = tl.where(size >= 0, size, 0.0)
        key = signed_key(size, (first_base + rel) * runs + run)
        tl.store(KEYS + (row.to(tl.int64) * count + rel) * runs + run, key, mask=(rel < stop) & (run < runs))


@triton.jit(do_not_specialize=["rows", "count", "atoms", "runs", "blocks", *KEY])
def rescore_runs_kernel(
    V, WINNERS, KEYS, rows, count, atoms, runs, blocks, block, step_index, k0, k1, LOGP: tl.constexpr, RUN: tl.constexpr
):
    """KEYS [rows, count, RUN] of all signed atoms of the runs in WINNERS [rows, count], keys of `runs_kernel`.
    Grid: (rows, count)."""
    N: tl.constexpr = 1 << LOGP
    row = tl.program_id(0)
    place = row.to(tl.int64) * count + tl.program_id(1)
    n = tl.arange(0, N)[None, :]
    number = 0x1FFFFFFFF - (tl.load(WINNERS + place) & 0x1FFFFFFFF)
    base = number // runs
    first = ((number - base * runs) * RUN).to(tl.int32)
    v = tl.load(V + (row.to(tl.int64) << LOGP) + n)
    x = base_scores(V, v, row, rows, 0, 0, 1, base.to(tl.int32), block + row % blocks, step_index, k0, k1, LOGP, LOGP, 1)
    size = tl.where(tl.abs(x) >= 0, tl.abs(x), 0.0)
    key = signed_key(size, 2 * (base * atoms + n) + (x < 0).to(tl.int64))
    key = tl.where(n < atoms, key, -0x8000000000000000)
    tl.store(KEYS + place * RUN + (n - first), key, mask=(n >= first) & (n < first + RUN))


def num_warps(entries: int) -> int:
    """Warps of a program that transforms so many entries."""
    return max(1, min(8, entries // (32 * ENTRIES)))


def best_of_runs(v: Tensor, together: int, count: int, atoms: int, bases: int, key: Key) -> Tensor:
    """v [rows, P] rotated residuals -> keys [rows, count] of the best atoms, best first; programs do `together` bases at
    once. P is that of one program."""
    rows, size = v.shape
    logp, run = size.bit_length() - 1, min(RUN, size)
    runs, best = triton.cdiv(atoms, run), None
    slab = max(1, HELD // (rows * runs))  # bases at a time
    for base in range(0, bases, slab):
        group = min(slab, bases - base)
        keys = torch.empty((rows, group * runs), dtype=torch.int64, device=v.device)
        rounds = triton.cdiv(group, together)
        chunk = triton.cdiv(rounds, max(1, min(rounds, PROGRAMS // rows))) * together
        runs_kernel[(rows, triton.cdiv(group, chunk))](
            v,
            keys,
            rows,
            group,
            chunk,
            atoms,
            runs,
            int32(base),
            *key,
            LOGP=logp,
            ROWS=together,
            RUN=run,
            FULL=atoms == size,
            num_warps=num_warps(together * size),
            enable_fp_fusion=False,
        )
        best = keep_top(best, keys, count)
    assert best is not None  # there is at least one base
    winners, best, slab = best, None, max(1, HELD // (rows * run))
    for first in range(0, winners.shape[1], slab):
        part = winners[:, first : first + slab].contiguous()
        keys = torch.empty((rows, part.shape[1] * run), dtype=torch.int64, device=v.device)
        rescore_runs_kernel[(rows, part.shape[1])](
            v,
            part,
            keys,
            rows,
            part.shape[1],
            atoms,
            runs,
            *key,
            LOGP=logp,
            RUN=run,
            num_warps=num_warps(size),
            enable_fp_fusion=False,
        )
        best = keep_top(best, keys, count)
    assert best is not None
    return best


def best_of_all(v: Tensor, cut: Cut, count: int, atoms: int, bases: int, key: Key) -> Tensor:
    """The same for any P, by all keys."""
    rows, size = v.shape
    logp, best = size.bit_length() - 1, None
    for base, group, work in half_scores(v, logp, cut, bases, key):
        keys = torch.empty((rows, group * atoms), dtype=torch.int64, device=v.device)
        keys_kernel[(rows * (size >> cut.logn), triton.cdiv(group, cut.together))](
            work,
            keys,
            rows,
            group,
            atoms,
            int32(base),
            *key,
            LOGP=logp,
            LOGN=cut.logn,
            ROWS=cut.together,
            num_warps=num_warps(cut.together << cut.logn),
            enable_fp_fusion=False,
        )
        best = keep_top(best, keys, count)
    assert best is not None  # there is at least one base
    return best


def runs_pay(count: int, atoms: int, bases: int) -> bool:
    """Whether the keys of runs and of the atoms in `count` of them are few beside all, and so are the second transforms.

    On an H200 a topk of all keys took a hundred times as long as the search that made them."""
    return 4 * RUN * count <= bases * atoms and count <= 16 * bases


def hadamard_top(residual: Tensor, count: int, atoms: int, bases: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """The `count` signed atoms of largest |score| of all, best first, ties to the smaller atom (Turbo-DDCM): residual
    [B, U, D] float32 -> tokens [B, U, count] int64 in [0, 2 bases atoms)."""
    check(residual, residual.shape[-1], 1, atoms, bases, step_index, seed, block)
    check_floats("residual", residual)
    check_count(count, bases * atoms)
    batch, blocks, d = residual.shape
    logp = log2_padded(d)
    tokens = torch.empty((batch, blocks, count), dtype=torch.int64, device=residual.device)
    with on(residual):
        for v, key, b, u in rotated(residual, count, block, step_index, seed):
            cut = Cut.of(v, logp, bases, 2, max(1, HELD // (len(v) * atoms)))
            flat = tokens[b, u].reshape(-1, count)
            if cut.logn == logp and runs_pay(count, atoms, bases):
                flat.copy_(best_of_runs(v, Cut.of(v, logp, bases, 2).together, count, atoms, bases, key))
            else:
                flat.copy_(best_of_all(v, cut, count, atoms, bases, key))
            unpack(flat)
    return tokens


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
    blocks,
    block,
    step_index,
    k0,
    k1,
    K: tl.constexpr,
    DRAWS: tl.constexpr,
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
    at = Q + row * chunks * (128 * DRAWS) + tl.full((16,), 0, tl.int64)
    negative = negative_sums(at, word, chunks, ones, block + (row % blocks).to(tl.int32), step_index, k0, k1, K, 16, DRAWS)
    score = tl.load(TOTAL + row) - 2 * tl.max(negative, axis=1)
    key = signed_key(tl.abs(score), 2 * word + (score < 0).to(tl.int64))
    key = tl.where(word < limit, key, -0x8000000000000000)
    tl.store(KEYS + row * count * NEIGHBOURS + k, key, mask=mask)


def best_codewords(x: Quantised, count: int, atoms: int) -> Tensor:
    """Keys [rows, count] of the best codewords, best first."""
    rows, runs, best = x.total.numel(), triton.cdiv(atoms, NEIGHBOURS), None
    slab = max(1, HELD // rows)  # runs at a time
    for base in range(0, runs, slab):
        keys = torch.empty((rows, min(slab, runs - base)), dtype=torch.int64, device=x.q.device)
        search(x, keys, atoms, base=base)
        best = keep_top(best, keys, count)
    assert best is not None  # there is at least one codeword
    winners, best, slab = best, None, max(1, HELD // (rows * NEIGHBOURS))
    for base in range(0, winners.shape[1], slab):
        part = winners[:, base : base + slab].contiguous()
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


def independent_top(residual: Tensor, count: int, atoms: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """The `count` signed codewords of largest |score| in one bin, best first, ties to the smaller codeword (Turbo-DDCM):
    residual [B, U, D] float32 -> tokens [B, U, count] int64 in [0, 2 atoms)."""
    check_residual(residual, 1, atoms, step_index, seed, block)
    check_count(count, atoms)
    batch, blocks, _ = residual.shape
    tokens = torch.empty((batch, blocks, count), dtype=torch.int64, device=residual.device)
    with on(residual):
        for x, b, u in quantised(residual, count, block, step_index, seed):
            keys = tokens[b, u].reshape(-1, count)
            keys.copy_(best_codewords(x, count, atoms))
            unpack(keys)
    return tokens
