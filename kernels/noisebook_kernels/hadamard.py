# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Search of kind `hadamard`: score(j, i) = H(b_j * v)[i] / sqrt(P), v = H(a * pad(r)) the residual rotated once.

All P atoms of a base cost one transform in registers, whose signs are made on the fly: 12 additions, 2 instructions for
the sign, 1 to 3 for the maximum and about 2 for the exchanges an atom at P = 4096. A program keeps its view's rotated
residual in registers and walks through bases; its winners go into the output by an atomic maximum. Views too long for
one program are cut: strided passes through a workspace do the high bits, and the same program the low ones. One bin of all
atoms, the case of a million codewords for one token, may go through `matrix` instead, with the same tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fwht import fwht, high_passes, low_bits, rotate, transform
from .layout import KEY, TILE, WORKSPACE, Key, check, check_bias, check_floats, groups, int32, log2_padded, on
from .matrix import CHUNK, LEAST, MOST, matrix_kernel
from .philox import STREAM_BASIS, flip, row_bits
from .winners import NOTHING, biased_key, signed_key, unpack

BASES = 1 << 20  # bases of one launch
PROGRAMS = 1056  # programs of one launch: two rounds of four on each of an H200's 132 processors
ENTRIES = 32  # of a thread: five bits of a transform without an exchange


@triton.jit
def base_scores(
    V,
    v,
    row,
    rows,
    tile,
    j,
    stop,
    base,
    number,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    ROWS: tl.constexpr,
    SIGNED: tl.constexpr = False,
):
    """sqrt(P) scores [ROWS, N] of the bases base + j ... base + j + ROWS - 1; 0 beyond `stop`."""
    N: tl.constexpr = 1 << LOGN
    if SIGNED and ROWS > 1:
        rel = j + tl.arange(0, ROWS)[:, None]
        at = ((row + rel * rows).to(tl.int64) << LOGP) + tl.arange(0, N)[None, :]
        x = tl.load(V + at, mask=rel < stop, other=0.0)
    elif LOGN == LOGP and not SIGNED:
        rel = j + tl.arange(0, ROWS)[:, None]
        x = flip(v, row_bits(0, base + rel, step_index, number, k0, k1, STREAM_BASIS, N))
        if ROWS > 1:
            x = tl.where(rel < stop, x, 0.0)
    else:
        at = ((row + j * rows).to(tl.int64) << LOGP) + tile * N + tl.arange(0, N)[None, :]
        x = tl.load(V + at)
    return fwht(x, ROWS, N, LOGN)


@triton.jit(do_not_specialize=["rows", "count", "chunk", "bins", "atoms", "base", "scale", "width", "blocks", *KEY])
def search_kernel(
    V,
    BIAS,
    KEYS,
    rows,
    count,
    chunk,
    bins,
    atoms,
    base,
    scale,
    width,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    ROWS: tl.constexpr,
    BIN: tl.constexpr,
    FOLD: tl.constexpr,
    BIASED: tl.constexpr,
    WARPS: tl.constexpr,
    SIGNED: tl.constexpr,
):
    """Bases base ... base + count - 1, `chunk` of them (a multiple of ROWS) a program. Grid: (rows tiles, chunks).

    V: [rows, P] rotated residuals when a tile is the whole view, otherwise [count, rows, P] half transformed scores, as
    always when SIGNED (with nothing transformed where a tile is the whole view).
    KEYS [rows, bins]: the running winners. BIAS [blocks, width] is added to scale * x. FOLD, for one bin of all P atoms: a
    thread keeps one maximum, and the atom is found by repeating the best base at the end."""
    N: tl.constexpr = 1 << LOGN
    TILES: tl.constexpr = 1 << (LOGP - LOGN)
    SLOT: tl.constexpr = BIN if BIN < N else N
    row = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    number = block + row % blocks
    n = tl.arange(0, N)[None, :]
    rel_row = tl.arange(0, ROWS)[:, None]
    start = tl.program_id(1) * chunk
    stop = tl.minimum(start + chunk, count)
    first_base = base.to(tl.uint32).to(tl.int64)
    v = tl.load(V + (row.to(tl.int64) << LOGP) + n) if TILES == 1 and not SIGNED else n
    if FOLD:
        REST: tl.constexpr = min(32 * WARPS, ROWS * N)  # one maximum a thread
        best = tl.full((REST,), 0.0, tl.float32)
        code = tl.full((REST,), 0, tl.int32) + start
        for j in range(start, stop, ROWS):
            x = base_scores(V, v, row, rows, tile, j, stop, base, number, step_index, k0, k1, LOGP, LOGN, ROWS, SIGNED)
            most = tl.max(tl.reshape(tl.abs(x), (ROWS * N // REST, REST)), axis=0)
            code = tl.where(most > best, j, code)  # the earlier base wins a tie
            best = tl.where(most > best, most, best)
        top = tl.max(best, axis=0)
        j = tl.min(tl.where(best == top, code, 0x7FFFFFFF), axis=0)
        x = base_scores(V, v, row, rows, tile, j, stop, base, number, step_index, k0, k1, LOGP, LOGN, ROWS, SIGNED)
        place = tl.where((tl.abs(x) == top) & (j + rel_row < stop), 2 * (rel_row * N + n) + (x < 0).to(tl.int32), 0x7FFFFFFF)
        place = tl.min(tl.reshape(place, (ROWS * N,)), axis=0)
        place = tl.where(place == 0x7FFFFFFF, 0, place)  # scores that are not numbers
        tl.atomic_max(KEYS + row, signed_key(top, 2 * N * (first_base + j) + place), sem="relaxed")
    else:
        i = (tile * N + n) % BIN
        best = tl.full((ROWS, N), float("-inf") if BIASED else 0.0, tl.float32)
        code = tl.full((ROWS, N), 0, tl.int32) + start + rel_row
        for j in range(start, stop, ROWS):
            rel = j + rel_row
            x = base_scores(V, v, row, rows, tile, j, stop, base, number, step_index, k0, k1, LOGP, LOGN, ROWS, SIGNED)
            if BIASED:
                bias = BIAS + (row % blocks).to(tl.int64) * width + (first_base + rel) * atoms + i
                x = x * scale + tl.load(bias, mask=(rel < stop) & (i < atoms), other=float("-inf"))
                better = x > best
            else:
                better = tl.abs(x) > tl.abs(best)
            best = tl.where(better, x, best)
            code = tl.where(better, rel, code)
        atom = (first_base + code) * atoms + i
        if BIASED:
            key = biased_key(best, atom)
        else:
            key = signed_key(tl.abs(best), 2 * atom + (best < 0).to(tl.int64))
        key = tl.where((i < atoms) & (code < stop), key, -0x8000000000000000)
        key = tl.permute(tl.reshape(key, (ROWS, N // SLOT, SLOT)), (1, 0, 2))
        key = tl.max(tl.reshape(key, (N // SLOT, ROWS * SLOT)), axis=1)
        bin_ = (tile * N + tl.arange(0, N // SLOT) * SLOT) // BIN
        tl.atomic_max(KEYS + row.to(tl.int64) * bins + bin_, key, sem="relaxed")


class Cut(NamedTuple):
    """How a search over views of P dimensions is cut: bits of a tile, bases in a tile, bases of a launch."""

    logn: int
    together: int
    group: int

    @classmethod
    def of(cls, v: Tensor, logp: int, bases: int, tiles: int, most: int = BASES) -> "Cut":
        logn = low_bits(logp, tiles)
        if logn < logp:  # the scores of a group of bases are in flight between two launches
            return cls(logn, 1, max(1, min(bases, most, WORKSPACE // v.numel())))
        return cls(logn, min(max(1, TILE >> logn), triton.next_power_of_2(min(bases, most))), min(bases, most))


def half_scores(v: Tensor, logp: int, cut: Cut, bases: int, key: Key) -> Iterator[tuple[int, int, Tensor]]:
    """(first base, number of bases, what the kernels take as V) for every group of bases."""
    rows, size = v.shape
    passes = high_passes(cut.logn, logp)
    work = torch.empty((cut.group, rows, size), dtype=torch.float32, device=v.device) if passes else v
    for base in range(0, bases, cut.group):
        count = min(cut.group, bases - base)
        for k, (low, bits) in enumerate(passes):
            if k == 0:
                transform(v, work, logp, low, bits, key, flip=2, base=base, count=count)
            else:
                flat = work[:count].view(-1, size)
                transform(flat, flat, logp, low, bits, key)
        yield base, count, work


def matrix_units(device: torch.device) -> bool:
    """Whether `matrix_kernel` takes fewer instructions than butterflies there: from Hopper on (8 against 18 an atom at
    P = 4096; 15 against 18 on sm_80, which leaves no room for its accumulators)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def search(
    work: Tensor,
    keys: Tensor,
    logp: int,
    bins: int,
    atoms: int,
    cut: Cut,
    bases: tuple[int, int, int],
    key: Key,
    bias: Tensor | None = None,
    fold: bool = False,
    signed: bool = False,
) -> None:
    """One launch of `search_kernel`: keys [rows, bins], the running winners, against work, its V. bases: (the first, how
    many, how many there are in all)."""
    (rows, _), (base, count, every), size = keys.shape, bases, 1 << logp
    tiles = rows * (size >> cut.logn)
    n = cut.together << cut.logn
    num_warps = max(1, min(8, n // (32 * ENTRIES)))
    rounds = -(-count // cut.together)
    chunk = -(-rounds // max(1, min(rounds, PROGRAMS // tiles))) * cut.together
    search_kernel[(tiles, -(-count // chunk))](
        work,
        work if bias is None else bias,
        keys,
        rows,
        count,
        chunk,
        bins,
        atoms,
        int32(base),
        size**-0.5,
        every * atoms,
        *key,
        LOGP=logp,
        LOGN=cut.logn,
        ROWS=cut.together,
        BIN=size // bins,
        FOLD=fold,
        BIASED=bias is not None,
        WARPS=num_warps,
        SIGNED=signed,
        num_warps=num_warps,
        enable_fp_fusion=False,
        maxnreg=128 if fold and n <= 1024 * num_warps else None,  # four programs a processor; nothing spills
    )


def _search(
    v: Tensor, tokens: Tensor, logp: int, bins: int, atoms: int, bases: int, key: Key, bias: Tensor | None = None
) -> None:
    """v [rows, P] rotated residuals -> tokens [rows, bins]."""
    rows, size = v.shape
    fold = bins == 1 and atoms == size and bias is None and low_bits(logp) == logp
    cut = Cut.of(v, logp, bases, 4 if fold else 2)
    tokens.fill_(NOTHING)
    matrix = fold and LEAST <= logp <= MOST and matrix_units(v.device)
    for base, count, work in half_scores(v, logp, cut, bases, key):
        if not matrix:
            search(work, tokens, logp, bins, atoms, cut, (base, count, bases), key, bias, fold)
            continue
        rounds = -(-count // cut.together)
        chunk = min(CHUNK, -(-rounds // max(1, min(rounds, PROGRAMS // rows))) * cut.together)
        matrix_kernel[(rows, -(-count // chunk))](
            v,
            tokens,
            count,
            chunk,
            int32(base),
            *key,
            LOGP=logp,
            CHUNK=CHUNK,
            num_warps=4 if logp == LEAST else 8,
            maxnreg=128 if logp == LEAST else None,
            enable_fp_fusion=False,
        )
    unpack(tokens, bias is not None)


def rotated(
    residual: Tensor, columns: int, block: int, step_index: int, seed: int
) -> Iterator[tuple[Tensor, Key, slice, slice]]:
    """(rotated residuals [rows, P], their key, images, blocks) for every group of views."""
    batch, blocks, d = residual.shape
    logp = log2_padded(d)
    for b, u in groups(batch, blocks, max(1 << logp, columns)):
        part = residual[b, u].reshape(-1, d)
        key = Key.of(u.stop - u.start, block + u.start, step_index, seed)
        v = torch.empty((len(part), 1 << logp), dtype=torch.float32, device=residual.device)
        rotate(part, v, logp, key)
        yield v, key, b, u


def hadamard_select(
    residual: Tensor, bins: int, atoms: int, bases: int, step_index: int, seed: int, block: int = 0
) -> Tensor:
    """One signed atom per bin and view: residual [B, U, D] float32 -> tokens [B, U, bins] int64 in [0, 2 bases atoms).

    View u draws from the streams of block `block + u`. The residual must be finite; that is the caller's to check (once
    an encode, on the device): here a NaN or Inf gives some token in range."""
    check(residual, residual.shape[-1], bins, atoms, bases, step_index, seed, block)
    check_floats("residual", residual)
    batch, blocks, d = residual.shape
    tokens = torch.empty((batch, blocks, bins), dtype=torch.int64, device=residual.device)
    with on(residual):
        for v, key, b, u in rotated(residual, bins, block, step_index, seed):
            _search(v, tokens[b, u].reshape(-1, bins), log2_padded(d), bins, atoms, bases, key)
    return tokens


def hadamard_biased(
    residual: Tensor, bias: Tensor, atoms: int, bases: int, step_index: int, seed: int, block: int = 0
) -> Tensor:
    """argmax over all atoms k of score_k + bias_k, unsigned: residual [B, U, D], bias [U, bases atoms] float32 -> tokens
    [B, U, 1] int64 = 2 k. A bias of -inf excludes an atom."""
    check(residual, residual.shape[-1], 1, atoms, bases, step_index, seed, block)
    check_floats("residual", residual)
    batch, blocks, d = residual.shape
    check_bias(bias, blocks, bases * atoms)
    tokens = torch.empty((batch, blocks, 1), dtype=torch.int64, device=residual.device)
    with on(residual):
        for v, key, b, u in rotated(residual, 1, block, step_index, seed):
            _search(v, tokens[b, u].reshape(-1, 1), log2_padded(d), 1, atoms, bases, key, bias[u])
    return tokens
