"""The definition of both codebook laws in plain torch: slow, exact, and what every fast implementation is tested against.

Codewords are exact integers until one final multiplication, so they are the same on every device. Bit layout of the
random streams, tokens and limits: docs/codebook.md. All functions run on the CPU in int64 and float64.

    atom(j, i) = a * H(b_j * H e_i)        law `hadamard`: a, b_j random signs, H the Walsh-Hadamard transform
    word(k)    = a * H u_k                 law `independent`: u_k random signs of its own

P is the smallest power of two >= D; a view of D dimensions is padded with zeros to P.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STREAM_START, STREAM_ROTATION, STREAM_BASIS, STREAM_INDEPENDENT, STREAM_ARRIVAL, STREAM_CHUNK = range(6)
START_STEP = 0xFFFFFFFF  # the step index of the initial state
MASK = 0xFFFFFFFF


def next_pow2(d: int) -> int:
    """The smallest power of two >= d."""
    return 1 << (d - 1).bit_length()


def _mulhilo(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of uint32 values held in int64 (split, so that int64 never overflows)."""
    low = x * (multiplier & 0xFFFF)  # < 2^48
    high = x * (multiplier >> 16) + (low >> 16)  # < 2^49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., 2011). counter: four int64 tensors of uint32 values; returns four of the same shape."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is not in [0, 2^64)")
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        h0, l0 = _mulhilo(c0, 0xD2511F53)
        h1, l1 = _mulhilo(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def words(count: int, index: int | Tensor, step: int, stream: int, seed: int, unit: int = 0) -> Tensor:
    """The first `count` 32-bit words of a stream, int64 [..., count]; leading axes are those of `index`."""
    index = torch.as_tensor(index, dtype=torch.int64)[..., None]
    block = torch.arange(-(-count // 4)).expand(*index.shape[:-1], -1)
    rest = [index.expand_as(block), torch.full_like(block, step), torch.full_like(block, stream + 256 * unit)]
    return torch.stack(philox4x32([block, *rest], seed), -1).flatten(-2)[..., :count]


def signs(length: int, index: int | Tensor, step: int, stream: int, seed: int, unit: int = 0) -> Tensor:
    """+1 and -1 as int64 [..., length]: sign d is bit d % 32, least significant first, of word d // 32; 1 means -1."""
    w = words(-(-length // 32), index, step, stream, seed, unit)
    bits = (w[..., None] >> torch.arange(32)) & 1
    return 1 - 2 * bits.flatten(-2)[..., :length]


def fwht(x: Tensor) -> Tensor:
    """Unnormalised Walsh-Hadamard transform of the last axis, natural order: y[i] = sum_d (-1)^popcount(i & d) x[d]."""
    n, h = x.shape[-1], 1
    while h < n:
        v = x.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        x = torch.stack([v[..., 0, :] + v[..., 1, :], v[..., 0, :] - v[..., 1, :]], -2).reshape(x.shape)
        h *= 2
    return x


def unit_rms(total: Tensor) -> Tensor:
    """Exact integers [..., D] -> float32 [..., D] of root mean square 1. One float32 factor a row; a zero row stays 0."""
    d = total.shape[-1]
    square_sum = (total * total).sum(-1, keepdim=True).double()
    dims = torch.full_like(square_sum, d)  # tensor by tensor: torch divides a number by a tensor in two roundings
    factor = torch.where(square_sum > 0, (dims / square_sum.clamp(min=1)).sqrt(), 0.0).float()
    return total.float() * factor


def start_noise(d: int, seed: int, unit: int = 0) -> Tensor:
    """The initial noise of a view when no token pays for it: float32 [D] of root mean square 1."""
    p = next_pow2(d)
    u = signs(p, 0, START_STEP, STREAM_START, seed, unit)
    return unit_rms((signs(p, 0, START_STEP, STREAM_ROTATION, seed, unit) * fwht(u))[:d])


def rotated_residual(residual: Tensor, step: int, seed: int, unit: int = 0) -> Tensor:
    """H(a * pad(r)): float64 [B, P], on torch's default device. Raises ValueError on NaN and Inf."""
    r = residual.detach().to(torch.get_default_device()).double()
    if not torch.isfinite(r).all():
        raise ValueError("the residual is not finite")
    p = next_pow2(r.shape[-1])
    r = torch.nn.functional.pad(r, (0, p - r.shape[-1]))
    return fwht(signs(p, 0, step, STREAM_ROTATION, seed, unit) * r)


def hadamard_scores(residual: Tensor, bases: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """Scores of all atoms, float64 [B, J, P], equal to <atom, pad(r)> / sqrt(P)."""
    v = rotated_residual(residual, step, seed, unit)
    p = v.shape[-1]
    b = signs(p, torch.arange(bases), step, STREAM_BASIS, seed, unit)
    return fwht(b * v[:, None]) / math.sqrt(p)


def independent_scores(residual: Tensor, count: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """Scores of codewords 0 ... count-1, float64 [B, K], equal to <word, pad(r)> / sqrt(P)."""
    v = rotated_residual(residual, step, seed, unit)
    p = v.shape[-1]
    chunk = max(1, (1 << 22) // p)
    parts = [
        signs(p, torch.arange(k, min(k + chunk, count)), step, STREAM_INDEPENDENT, seed, unit).double() @ v.T
        for k in range(0, count, chunk)
    ]
    return torch.cat(parts).T / math.sqrt(p)


def best_signed(scores: Tensor) -> Tensor:
    """scores [..., choices] -> int64 [...]: 2 * argmax|score| + (score < 0); ties go to the smaller index."""
    size = scores.abs()
    index = torch.arange(scores.shape[-1]).expand_as(scores)
    best = torch.where(size == size.amax(-1, keepdim=True), index, scores.shape[-1]).amin(-1)
    return 2 * best + (scores.gather(-1, best[..., None])[..., 0] < 0)


def hadamard_select(residual: Tensor, bins: int, atoms: int, bases: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """One signed atom per bin for the views of one unit: float [B, D] -> int64 [B, bins] in [0, 2 * bases * atoms)."""
    s = hadamard_scores(residual, bases, step, seed, unit)  # [B, J, P]
    s = s.unflatten(-1, (bins, -1))[..., :atoms]  # [B, J, M, A]
    return best_signed(s.transpose(1, 2).flatten(2))


def top_signed(scores: Tensor, count: int) -> Tensor:
    """scores [..., choices] -> int64 [..., count]: the tokens of the largest |scores|, best first; ties to the smaller."""
    order = scores.abs().sort(dim=-1, descending=True, stable=True)[1][..., :count]
    return 2 * order + (scores.gather(-1, order) < 0)


def hadamard_top(residual: Tensor, count: int, atoms: int, bases: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """The `count` signed atoms of largest |score| in one bin, best first (Turbo-DDCM): float [B, D] -> int64 [B, count]."""
    return top_signed(hadamard_scores(residual, bases, step, seed, unit)[..., :atoms].flatten(1), count)


def hadamard_biased(residual: Tensor, bias: Tensor, atoms: int, bases: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """argmax over atoms k of score_k + bias_k, unsigned (token 2 k): float [B, D], bias [bases * atoms] -> int64 [B, 1]."""
    scores = hadamard_scores(residual, bases, step, seed, unit)[..., :atoms].flatten(1)
    return 2 * (scores + bias).argmax(-1, keepdim=True)


def hadamard_total(tokens: Tensor, d: int, bins: int, atoms: int, bases: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """The chosen signed atoms summed: exact integers, int64 [B, D]. tokens [B, bins], or with bins = 1 any number."""
    p = next_pow2(d)
    atom, value = tokens.cpu() >> 1, 1 - 2 * (tokens.cpu() & 1)
    base, row = atom // atoms, atom % atoms + torch.arange(bins) * (p // bins)  # [B, M]
    total = torch.zeros(len(tokens), p, dtype=torch.int64)
    for j in base.unique().tolist():
        w = torch.zeros_like(total).scatter_add_(1, row, torch.where(base == j, value, 0))
        total += fwht(signs(p, j, step, STREAM_BASIS, seed, unit) * fwht(w))
    return (signs(p, 0, step, STREAM_ROTATION, seed, unit) * total)[:, :d]


def independent_select(residual: Tensor, bins: int, atoms: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """One signed codeword per bin: float [B, D] -> int64 [B, bins] in [0, 2 * atoms); bin m owns [m*atoms, (m+1)*atoms)."""
    return best_signed(independent_scores(residual, bins * atoms, step, seed, unit).unflatten(-1, (bins, atoms)))


def independent_top(residual: Tensor, count: int, atoms: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """The `count` signed codewords of largest |score| in one bin, best first: float [B, D] -> int64 [B, count]."""
    return top_signed(independent_scores(residual, atoms, step, seed, unit), count)


def independent_biased(residual: Tensor, bias: Tensor, step: int, seed: int, unit: int = 0) -> Tensor:
    """argmax over codewords k of score_k + bias_k, unsigned (token 2 k): float [B, D], bias [K] -> int64 [B, 1].

    With residual = mu and bias = -log T it is the Poisson functional representation of N(mu, I) (docs/codebook.md)."""
    return 2 * (independent_scores(residual, len(bias), step, seed, unit) + bias).argmax(-1, keepdim=True)


def independent_total(tokens: Tensor, d: int, bins: int, atoms: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """The chosen signed codewords summed: exact integers, int64 [B, D]. tokens [B, bins], or with bins = 1 any number."""
    p = next_pow2(d)
    word, value = (tokens.cpu() >> 1) + torch.arange(bins) * atoms, 1 - 2 * (tokens.cpu() & 1)
    total = torch.zeros(len(tokens), p, dtype=torch.int64)
    for m in range(tokens.shape[1]):
        total += value[:, m : m + 1] * signs(p, word[:, m], step, STREAM_INDEPENDENT, seed, unit)
    return (signs(p, 0, step, STREAM_ROTATION, seed, unit) * fwht(total))[:, :d]


def arrival_times(count: int, step: int, seed: int, unit: int = 0) -> Tensor:
    """T_k of a unit Poisson process, float64 [count]: sums of exponential gaps. For the encoder alone: `log` may differ."""
    return -((words(count, 0, step, STREAM_ARRIVAL, seed, unit).double() + 0.5) / 2.0**32).log().cumsum(0)


def chunk_order(d: int, step: int, seed: int) -> Tensor:
    """A permutation of d dimensions, int64 [d]: sorted by (word, index); chunks are consecutive runs of it."""
    return words(d, 0, step, STREAM_CHUNK, seed).sort(stable=True)[1]
