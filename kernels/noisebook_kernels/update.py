# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""From tokens to noise, for both kinds: z = (the chosen signed atoms summed, exact integers) * one float32 factor.

One launch makes z and back-traces with it, two where tokens are many; a view too long for one program takes one for every
pass of its transform. How sign vectors of tokens are added up stands in adding.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adding import MANY, add, superposed
from .fwht import fwht, high_passes, low_bits, transform
from .layout import KEY, Key, check, check_floats, groups, log2_padded, on, warps
from .philox import STREAM_ROTATION, row_bits


@triton.jit
def rotated_back(x, first, step_index, number, k0, k1, LOGN: tl.constexpr):
    """int32 x [1, N] under the signs of the rotation: the integer is flipped, so that there is no -0.0."""
    index = tl.full((1, 1), 0, tl.int32)
    bits = row_bits(first, index, step_index, number, k0, k1, STREAM_ROTATION, 1 << LOGN)
    return tl.where((bits & 0x80000000) != 0, -x, x)


@triton.jit
def unit_factor(squares, d):
    """float32( sqrt( d / squares ) ), or 0: a float64 division and square root and one rounding."""
    wide = squares.to(tl.float64)
    size = tl.cast(d, tl.float64)  # not d.to(): Triton compiles a 1 in as a plain number, which has no methods
    return tl.where(squares > 0, tl.sqrt(size / tl.where(squares > 0, wide, 1.0)), 0.0).to(tl.float32)


@triton.jit
def finished(Y, X0, out, inside, z, keep, sigma_up, BACKTRACE: tl.constexpr):
    """z, or (X0 + keep (Y - X0)) + sigma_up z, each operation rounded on its own."""
    if BACKTRACE:
        y = tl.load(Y + out, mask=inside, other=0.0)
        x0 = tl.load(X0 + out, mask=inside, other=0.0)
        z = (x0 + keep * (y - x0)) + sigma_up * z
    return z


@triton.jit(do_not_specialize=["columns", "atoms", "apart", "keep", "sigma_up", "blocks", *KEY])
def noise_kernel(
    TOKENS,
    Y,
    X0,
    OUT,
    d,
    columns,
    atoms,
    apart,
    keep,
    sigma_up,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    HADAMARD: tl.constexpr,
    ADDED: tl.constexpr,
    BACKTRACE: tl.constexpr,
):
    """Everything for a view that fits one program: OUT [rows, d] from TOKENS [rows, columns], or ADDED, from their sign
    vectors' sums, TOKENS int32 [rows, P]. Grid: (rows,)."""
    row = tl.program_id(0)
    number = block + row % blocks
    if ADDED:
        x = tl.load(TOKENS + (row.to(tl.int64) << LOGP) + tl.arange(0, 1 << LOGP)[None, :])
    else:
        x = superposed(TOKENS, row, 0, columns, atoms, apart, step_index, number, k0, k1, LOGP, HADAMARD)
    x = rotated_back(fwht(x, 1, 1 << LOGP, LOGP), 0, step_index, number, k0, k1, LOGP)
    at = tl.arange(0, 1 << LOGP)[None, :]
    inside = at < d
    wide = tl.where(inside, x, 0).to(tl.int64)
    z = x.to(tl.float32) * unit_factor(tl.sum(tl.reshape(wide * wide, (1 << LOGP,)), axis=0), d)
    out = row.to(tl.int64) * d + at
    tl.store(OUT + out, finished(Y, X0, out, inside, z, keep, sigma_up, BACKTRACE), mask=inside)


@triton.jit(do_not_specialize=["columns", "atoms", "apart", "blocks", *KEY])
def superpose_kernel(
    TOKENS,
    SUM,
    columns,
    atoms,
    apart,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    HADAMARD: tl.constexpr,
):
    """SUM [rows, P] int32 = the sum of sign vectors, the lowest LOGN bits transformed. Grid: (rows tiles,)."""
    N: tl.constexpr = 1 << LOGN
    row = tl.program_id(0) >> (LOGP - LOGN)
    first = (tl.program_id(0) & ((1 << (LOGP - LOGN)) - 1)) << LOGN
    x = superposed(TOKENS, row, first, columns, atoms, apart, step_index, block + row % blocks, k0, k1, LOGN, HADAMARD)
    tl.store(SUM + (row.to(tl.int64) << LOGP) + first + tl.arange(0, N)[None, :], fwht(x, 1, N, LOGN))


@triton.jit
def square_sum_kernel(SUM, SQUARES, d, LOGP: tl.constexpr, LOGN: tl.constexpr):
    """SQUARES [rows] int64 += the squares of the first d entries of SUM [rows, P]. Grid: (rows tiles,)."""
    row = tl.program_id(0) >> (LOGP - LOGN)
    first = (tl.program_id(0) & ((1 << (LOGP - LOGN)) - 1)) << LOGN
    at = first + tl.arange(0, 1 << LOGN)
    x = tl.load(SUM + (row.to(tl.int64) << LOGP) + at, mask=at < d, other=0).to(tl.int64)
    tl.atomic_add(SQUARES + row, tl.sum(x * x, axis=0))  # integers: any order gives the same sum


@triton.jit(do_not_specialize=["keep", "sigma_up", "blocks", *KEY])
def update_kernel(
    SUM,
    SQUARES,
    Y,
    X0,
    OUT,
    d,
    keep,
    sigma_up,
    blocks,
    block,
    step_index,
    k0,
    k1,
    LOGP: tl.constexpr,
    LOGN: tl.constexpr,
    BACKTRACE: tl.constexpr,
):
    """OUT [rows, d] from the integers of SUM [rows, P] and the sums of their squares. Grid: (rows tiles,)."""
    row = tl.program_id(0) >> (LOGP - LOGN)
    first = (tl.program_id(0) & ((1 << (LOGP - LOGN)) - 1)) << LOGN
    at = first + tl.arange(0, 1 << LOGN)[None, :]
    inside = at < d
    x = tl.load(SUM + (row.to(tl.int64) << LOGP) + at, mask=inside, other=0)
    x = rotated_back(x, first, step_index, block + row % blocks, k0, k1, LOGN)
    z = x.to(tl.float32) * unit_factor(tl.load(SQUARES + row), d)
    out = row.to(tl.int64) * d + at
    tl.store(OUT + out, finished(Y, X0, out, inside, z, keep, sigma_up, BACKTRACE), mask=inside)


def _group(
    tokens: Tensor,
    out: Tensor,
    y: Tensor,
    x0: Tensor,
    keep: float,
    sigma_up: float,
    bins: int,
    atoms: int,
    key: Key,
    hadamard: bool,
    backtrace: bool,
) -> None:
    """tokens [rows, columns]; y, x0 (read for a back-trace only) and out [rows, D]."""
    (rows, d), columns = out.shape, tokens.shape[1]
    logp = log2_padded(d)
    logn = low_bits(logp)
    apart = 0 if bins == 1 else (1 << logp) // bins if hadamard else atoms
    many = columns >= MANY
    in_between = many or logn < logp
    total = torch.empty((rows, 1 << logp), dtype=torch.int32, device=out.device) if in_between else out
    if many:
        add(tokens, total, atoms, apart, key, hadamard)
    if logn == logp:
        noise_kernel[(rows,)](
            total if many else tokens,
            y,
            x0,
            out,
            d,
            columns,
            atoms,
            apart,
            keep,
            sigma_up,
            *key,
            LOGP=logp,
            HADAMARD=hadamard,
            ADDED=many,
            BACKTRACE=backtrace,
            num_warps=warps(1 << logn),
            enable_fp_fusion=False,
        )
        return
    grid, num_warps = ((rows << (logp - logn)),), warps(1 << logn)
    if many:
        transform(total, total, logp, 0, logn, key)
    else:
        superpose_kernel[grid](
            tokens,
            total,
            columns,
            atoms,
            apart,
            *key,
            LOGP=logp,
            LOGN=logn,
            HADAMARD=hadamard,
            num_warps=num_warps,
            enable_fp_fusion=False,
        )
    for low, bits in high_passes(logn, logp):
        transform(total, total, logp, low, bits, key)
    squares = torch.zeros(rows, dtype=torch.int64, device=out.device)
    square_sum_kernel[grid](total, squares, d, LOGP=logp, LOGN=logn, num_warps=num_warps, enable_fp_fusion=False)
    update_kernel[grid](
        total,
        squares,
        y,
        x0,
        out,
        d,
        keep,
        sigma_up,
        *key,
        LOGP=logp,
        LOGN=logn,
        BACKTRACE=backtrace,
        num_warps=num_warps,
        enable_fp_fusion=False,
    )


def noise(
    tokens: Tensor,
    d: int,
    bins: int,
    atoms: int,
    bases: int | None,
    step_index: int,
    seed: int,
    block: int,
    y: Tensor | None = None,
    x0_hat: Tensor | None = None,
    keep: float = 0.0,
    sigma_up: float = 0.0,
) -> Tensor:
    """z(tokens), or the back-trace update when y and x0_hat are given: float32 [B, U, d]. bases: None for kind
    `independent`."""
    check(tokens, d, bins, atoms, bases, step_index, seed, block)
    columns = tokens.shape[-1]  # one bin may give any number of tokens
    if tokens.dtype != torch.int64 or not tokens.is_contiguous() or columns < 1 or (columns != bins and bins != 1):
        raise ValueError(f"tokens must be contiguous int64 [B, U, {bins}], got {tokens.dtype} {tuple(tokens.shape)}")
    batch, blocks = tokens.shape[:2]
    out = torch.empty((batch, blocks, d), dtype=torch.float32, device=tokens.device)
    backtrace = y is not None
    old, clean = (y, x0_hat) if y is not None and x0_hat is not None else (out, out)
    for name, x in (("y", old), ("x0_hat", clean)):
        check_floats(name, x)
        if x.shape != out.shape or x.device != out.device:
            raise ValueError(f"{name} must be {tuple(out.shape)} on {out.device}, got {tuple(x.shape)} on {x.device}")
    with on(tokens):
        for b, u in groups(batch, blocks, 1 << log2_padded(d)):
            key = Key.of(u.stop - u.start, block + u.start, step_index, seed)
            flat, into, y0, x0 = tokens[b, u].reshape(-1, columns), *(x[b, u].reshape(-1, d) for x in (out, old, clean))
            _group(flat, into, y0, x0, keep, sigma_up, bins, atoms, key, bases is not None, backtrace)
    return out


def hadamard_noise(
    tokens: Tensor, d: int, bins: int, atoms: int, bases: int, step_index: int, seed: int, block: int = 0
) -> Tensor:
    """z(tokens): int64 [B, U, bins] -> float32 [B, U, d] of root mean square 1, the same bits on every device. With one
    bin there may be any number of tokens."""
    return noise(tokens, d, bins, atoms, bases, step_index, seed, block)


def independent_noise(tokens: Tensor, d: int, bins: int, atoms: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """z(tokens): int64 [B, U, bins] -> float32 [B, U, d] of root mean square 1, the same bits on every device."""
    return noise(tokens, d, bins, atoms, None, step_index, seed, block)


def hadamard_backtrace(
    y: Tensor,
    x0_hat: Tensor,
    tokens: Tensor,
    keep: float,
    sigma_up: float,
    bins: int,
    atoms: int,
    bases: int,
    step_index: int,
    seed: int,
    block: int = 0,
) -> Tensor:
    """(x0_hat + keep (y - x0_hat)) + sigma_up z(tokens), float32 [B, U, D]; keep and sigma_up are rounded to float32 first,
    and every operation on its own, so the bits are those of the same expression over `hadamard_noise` in plain torch."""
    return noise(tokens, y.shape[-1], bins, atoms, bases, step_index, seed, block, y, x0_hat, keep, sigma_up)


def independent_backtrace(
    y: Tensor,
    x0_hat: Tensor,
    tokens: Tensor,
    keep: float,
    sigma_up: float,
    bins: int,
    atoms: int,
    step_index: int,
    seed: int,
    block: int = 0,
) -> Tensor:
    """As `hadamard_backtrace`, for kind `independent`."""
    return noise(tokens, y.shape[-1], bins, atoms, None, step_index, seed, block, y, x0_hat, keep, sigma_up)
