# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Tokens of kind `hadamard` chosen again, one part of the bins after the other, each given all others.

For residual r, T the integers of all tokens' atoms summed and R of those that stay, a part's tokens are the best for what
is missing, r - share <T, r> / (|T| |R|) R; share is sqrt(1 - 1 / parts). It is searched as any residual, rotated: v = H(a *
pad(r)), a the signs of the rotation.

T = a * H t, t the sum of the tokens' sign vectors (see update.py), and likewise R and its t'. So where a view has P
dimensions, the same formula holds of v, t and t', and what is missing needs no transform: v - share <t, v> / (|t| |t'|)
t'. Where it has fewer, the formula is applied to a * r, H t and H t', without the dimensions beyond D, and transformed.

Only the bins of the part are searched. Their rows of the Walsh matrix share the bits that number the part, so the entries
that differ in these bits add up, with the signs of that row, before a transform of P / parts entries.

Products and sums are of integers, so tokens depend neither on tiles nor on launch settings.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adding import chunk, tile_bits
from .fwht import high_passes, low_bits, rotate, transform
from .hadamard import Cut, search
from .layout import KEY, TILE, WORKSPACE, Key, check, check_floats, groups, int32, log2_padded, on, warps
from .missing import load_coefficient, missing_kernel, parts_kernel, sums_kernel
from .philox import STREAM_BASIS, flip, sign_words, stream_draw
from .winners import NOTHING, unpack

OUTPUTS = 1024  # entries that a program of `fold_kernel` makes


@triton.jit
def run_words(first, index, step_index, block, k0, k1, PARTS: tl.constexpr, LOGN: tl.constexpr, LOGW: tl.constexpr):
    """Words of the signs first + (e << LOGW) ... + N - 1 of bases `index` [BASES, 1], for e = 0 ... PARTS - 1, all made at
    once: a tuple of four uint32 [BASES, N / 32], one word at least; two of them twice where PARTS is 2."""
    N: tl.constexpr = 1 << LOGN
    WORDS: tl.constexpr = (N + 31) // 32
    starts = first + (tl.arange(0, PARTS)[None, :, None] << LOGW)
    if N < 128:
        word = starts // 32 + tl.arange(0, WORDS)[None, None, :]
        w = sign_words(word, index[:, :, None], step_index, block, k0, k1, STREAM_BASIS)
    else:
        draw = starts // 128 + tl.arange(0, N // 128)[None, None, :]
        w0, w1, w2, w3 = stream_draw(draw, index[:, :, None], step_index, block, k0, k1, STREAM_BASIS)
        w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (index.shape[0], PARTS, WORDS))
    w = tl.permute(w, (0, 2, 1))
    if PARTS == 2:
        even, odd = tl.split(w)
        return even, odd, even, odd
    else:
        even, odd = tl.split(tl.reshape(w, (index.shape[0], WORDS, 2, 2)))
        zero, two = tl.split(even)
        one, three = tl.split(odd)
        return zero, one, two, three


@triton.jit
def run(V, S, row, first, share, words, part, e: tl.constexpr, LOGP: tl.constexpr, LOGN: tl.constexpr, WHOLE: tl.constexpr):
    """[BASES, N]: the entries of what is missing from `first` on, under the signs of `words` [BASES, N / 32] and the sign at
    (part, e) of the Walsh matrix of order 4."""
    N: tl.constexpr = 1 << LOGN
    WIDTH: tl.constexpr = min(N, 32)
    at = (row.to(tl.int64) << LOGP) + first + tl.arange(0, N)[None, :]
    v = tl.load(V + at)
    if WHOLE:
        v -= share * tl.load(S + at).to(tl.float32)
    common = part & e
    words ^= (-((common ^ (common >> 1)) & 1)).to(tl.uint32)
    shift = (31 - first % 32 - tl.arange(0, WIDTH)).to(tl.uint32)
    return flip(v, tl.reshape(words[:, :, None] << shift[None, None, :], (words.shape[0], N)))


@triton.jit(do_not_specialize=["rows", "count", "base", "part", "blocks", *KEY])
def fold_kernel(
    V,
    S,
    SUMS,
    MOST,
    WORK,
    rows,
    count,
    base,
    part,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    LOGW: tl.constexpr,
    LOGT: tl.constexpr,
    PARTS: tl.constexpr,
    BASES: tl.constexpr,
    SHARE: tl.constexpr,
    BITS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """WORK [count, rows, P / PARTS] = the entries of b_j * v that differ in the bits of the part, added up with the signs of
    row `part` of the Walsh matrix, for the bases j from `base` on. Grid: (rows tiles, count / BASES).

    v [rows, P] is what is missing, rotated: V, or WHOLE: V less its share of S [rows, P]. 1 << LOGW rows of the Walsh
    matrix are a bin; a tile's 1 << LOGN entries lie within the width of one."""
    N: tl.constexpr = 1 << LOGN
    W: tl.constexpr = 1 << LOGW
    Q: tl.constexpr = (1 << LOGP) // PARTS
    row = tl.program_id(0) // (Q // N)
    at = tl.program_id(0) % (Q // N) * N
    number = block + row % blocks
    share = load_coefficient(SUMS, MOST, row, LOGT, SHARE, BITS) if WHOLE else 0.0
    rel = tl.program_id(1) * BASES + tl.arange(0, BASES)[:, None]
    first = (at >> LOGW) * (PARTS * W) + (at & (W - 1))
    w0, w1, w2, w3 = run_words(first, base + rel, step_index, number, k0, k1, PARTS, LOGN, LOGW)
    x = run(V, S, row, first, share, w0, part, 0, LOGP, LOGN, WHOLE)
    x += run(V, S, row, first + W, share, w1, part, 1, LOGP, LOGN, WHOLE)
    if PARTS == 4:
        x += run(V, S, row, first + 2 * W, share, w2, part, 2, LOGP, LOGN, WHOLE)
        x += run(V, S, row, first + 3 * W, share, w3, part, 3, LOGP, LOGN, WHOLE)
    out = (rel * rows + row).to(tl.int64) * Q + at + tl.arange(0, N)[None, :]
    tl.store(WORK + out, x, mask=rel < count)


class Views:
    """Some views of a call, and the memory that all their parts use.

    residual [rows, D], tokens [rows, M]. `whole` (D = P): `missing` [rows, P] is the rotated residual throughout."""

    def __init__(self, residual: Tensor, tokens: Tensor, parts: int, atoms: int, bases: int, key: Key):
        (self.rows, d), self.bins, device = residual.shape, tokens.shape[1], residual.device
        self.residual, self.tokens, self.parts, self.atoms, self.bases = residual, tokens, parts, atoms, bases
        self.key, self.logp, self.share = key, log2_padded(d), (1 - 1 / parts) ** 0.5
        size = 1 << self.logp
        self.whole = d == size
        self.short = tile_bits(self.logp)
        self.long = self.short if self.whole else low_bits(self.logp, 1)  # of the tiles of `sums`
        self.keys = torch.full((parts, self.rows, self.bins // parts), NOTHING, dtype=torch.int64, device=device)
        self.missing = torch.empty((self.rows, size), dtype=torch.float32, device=device)
        self.summed = torch.empty((1 if self.whole else 2, self.rows, size), dtype=torch.int32, device=device)
        self.sums = torch.empty((self.rows, 3, size >> self.long), dtype=torch.int64, device=device)
        if self.whole:
            rotate(residual, self.missing, self.logp, key)
        self.most = torch.linalg.vector_norm(self.missing if self.whole else residual, math.inf, dim=-1)
        # <t, y> fits 63 bits: |t| is about sqrt(M) P at most, and |y| sqrt(P) in units of the largest entry
        self.bits = min(23, 61 - (self.bins.bit_length() + 3 * self.logp + 1) // 2)

    def choose(self, part: int) -> None:
        """The keys of that part, given all others."""
        parts_kernel[(self.rows << (self.logp - self.short),)](
            self.tokens,
            self.keys,
            self.missing,
            self.summed,
            self.sums,
            self.most,
            self.rows,
            self.bins,
            self.atoms,
            (1 << self.logp) // self.bins,
            part,
            *self.key,
            LOGP=self.logp,
            LOGN=self.short,
            PARTS=self.parts,
            CHUNK=chunk(self.bins, self.short),
            BITS=self.bits,
            WHOLE=self.whole,
            num_warps=8,
            enable_fp_fusion=False,
        )
        if not self.whole:
            self.make_missing()
        self.search(part)

    def make_missing(self) -> None:
        """`missing` of views that are padded, from the sums of sign vectors."""
        how = {"BITS": self.bits, "num_warps": warps(1 << self.long), "enable_fp_fusion": False}
        shape = {"LOGP": self.logp, "LOGN": self.long, **how}
        grid, passes = (self.rows << (self.logp - self.long),), high_passes(self.long, self.logp)
        given, d = (self.summed, self.residual, self.sums, self.most), self.residual.shape[1]
        if passes:
            both = self.summed.view(-1, 1 << self.logp)
            for low, bits in [(0, self.long), *passes]:
                transform(both, both, self.logp, low, bits, self.key)
            sums_kernel[grid](*given, self.rows, d, *self.key, **shape)
        missing_kernel[grid](*given, self.missing, self.rows, d, *self.key, SHARE=self.share, **shape)
        for low, bits in passes:
            transform(self.missing, self.missing, self.logp, low, bits, self.key)

    def search(self, part: int) -> None:
        """The bins of the part against `missing`: views of P / parts entries, after `fold_kernel`."""
        logq, width = self.logp - (self.parts.bit_length() - 1), (1 << self.logp) // self.bins
        logn = low_bits(logq, 2)
        group = max(1, min(self.bases, WORKSPACE // (self.rows << logq)))
        most = triton.next_power_of_2(group)
        cut = Cut(logn, min(max(1, TILE >> logn), most) if logn == logq else 1, group)
        outputs = min(width, OUTPUTS)
        together = min(OUTPUTS // outputs, most)
        work = torch.empty((group, self.rows, 1 << logq), dtype=torch.float32, device=self.missing.device)
        for base in range(0, self.bases, group):
            count = min(group, self.bases - base)
            fold_kernel[((self.rows << logq) // outputs, -(-count // together))](
                self.missing,
                self.summed,
                self.sums,
                self.most,
                work,
                self.rows,
                count,
                int32(base),
                part,
                *self.key,
                LOGP=self.logp,
                LOGN=outputs.bit_length() - 1,
                LOGW=width.bit_length() - 1,
                LOGT=self.logp - self.long,
                PARTS=self.parts,
                BASES=together,
                SHARE=self.share,
                BITS=self.bits,
                WHOLE=self.whole,
                num_warps=warps(2 * together * outputs),
                enable_fp_fusion=False,
            )
            flat = work[:count].view(-1, 1 << logq)
            for low, bits in high_passes(logn, logq):
                transform(flat, flat, logq, low, bits, self.key)
            bins = self.bins // self.parts
            search(work, self.keys[part], logq, bins, self.atoms, cut, (base, count, self.bases), self.key, signed=True)


def hadamard_refined(
    residual: Tensor,
    tokens: Tensor,
    parts: int,
    bins: int,
    atoms: int,
    bases: int,
    step_index: int,
    seed: int,
    block: int = 0,
) -> Tensor:
    """The tokens of each of `parts` parts of the bins (bin m is of part m % parts) chosen again, given all others: residual
    [B, U, D] float32, tokens [B, U, bins] int64 in [0, 2 bases atoms) -> the same. `parts` is 2 or 4, and at most bins.

    As `hadamard_select`, it does not look whether the residual is finite."""
    check(residual, residual.shape[-1], bins, atoms, bases, step_index, seed, block)
    check_floats("residual", residual)
    batch, blocks, d = residual.shape
    if tokens.dtype != torch.int64 or not tokens.is_contiguous() or tokens.shape != (batch, blocks, bins):
        raise ValueError(f"tokens must be contiguous int64 [B, U, {bins}], got {tokens.dtype} {tuple(tokens.shape)}")
    if parts not in (2, 4) or parts > bins:
        raise ValueError(f"parts {parts} of {bins} bins: there can be 2, or 4 of 4 bins or more")
    out = torch.empty_like(tokens)
    with on(residual):
        for b, u in groups(batch, blocks, 1 << log2_padded(d)):
            key = Key.of(u.stop - u.start, block + u.start, step_index, seed)
            some = Views(residual[b, u].reshape(-1, d), tokens[b, u].reshape(-1, bins), parts, atoms, bases, key)
            for part in range(parts):
                some.choose(part)
            unpack(some.keys)
            out[b, u].view(-1, bins // parts, parts).copy_(some.keys.permute(1, 2, 0))
    return out
