"""The definition of both kinds of codebook in plain torch: slow, exact, and what every fast implementation is tested
against. The last functions of this file are the back end that serves CPU tensors with it.

Codewords are exact integers until one final multiplication, so they are the same on every device. Bit layout of the
random streams, tokens and limits: docs/codebook.md. All functions run on the CPU in int64 and float64.

    atom(j, i) = a * H(b_j * H e_i)        kind `hadamard`: a, b_j random signs, H the Walsh-Hadamard transform
    word(k)    = a * H u_k                 kind `independent`: u_k random signs of its own

P is the smallest power of two >= D; a view of D dimensions is padded with zeros to P. `block` is the number of the block
that the views [B, D] come from: each block has a codebook of its own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noisebook.codebook import refining
from noisebook.errors import ImageError
from noisebook.runtime.cuda_graphs import graph_cached

NOT_FINITE = "the residual has NaN or Inf: the image or the backbone's prediction is not finite"
STREAM_START, STREAM_ROTATION, STREAM_BASIS, STREAM_INDEPENDENT, STREAM_ARRIVAL, STREAM_CHUNK = range(6)
START_STEP = 0xFFFFFFFF  # the step index of the initial state
MASK = 0xFFFFFFFF
KEPT = 1 << 22  # numbers of a bias that stays in memory: the chunks of a photograph would fill gigabytes


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


def words(count: int, index: int | Tensor, step_index: int, stream: int, seed: int, block: int | Tensor = 0) -> Tensor:
    """The first `count` 32-bit words of a stream, int64 [..., count]; leading axes are those of `index` and `block`."""
    pair = (torch.as_tensor(part, dtype=torch.int64) for part in (index, block))
    indices, blocks = (part[..., None] for part in torch.broadcast_tensors(*pair))
    draw = torch.arange(-(-count // 4)).expand(*indices.shape[:-1], -1)
    rest = [indices.expand_as(draw), torch.full_like(draw, step_index), (stream + 256 * blocks).expand_as(draw)]
    return torch.stack(philox4x32([draw, *rest], seed), -1).flatten(-2)[..., :count]


def signs(length: int, index: int | Tensor, step_index: int, stream: int, seed: int, block: int | Tensor = 0) -> Tensor:
    """+1 and -1 as int64 [..., length]: sign d is bit d % 32, least significant first, of word d // 32; 1 means -1."""
    w = words(-(-length // 32), index, step_index, stream, seed, block)
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


def start_noise(d: int, seed: int, block: int | Tensor = 0) -> Tensor:
    """The initial noise of a view when no token pays for it: float32 [..., D] of root mean square 1; leading axes are those
    of `block`."""
    p = next_pow2(d)
    u = signs(p, 0, START_STEP, STREAM_START, seed, block)
    return unit_rms((signs(p, 0, START_STEP, STREAM_ROTATION, seed, block) * fwht(u))[..., :d])


def rotated_residual(residual: Tensor, step_index: int, seed: int, block: int = 0) -> Tensor:
    """H(a * pad(r)): float64 [B, P], on torch's default device. Raises ValueError on NaN and Inf."""
    r = residual.detach().to(torch.get_default_device()).double()
    if not torch.isfinite(r).all():
        raise ValueError("the residual is not finite")
    p = next_pow2(r.shape[-1])
    r = torch.nn.functional.pad(r, (0, p - r.shape[-1]))
    return fwht(signs(p, 0, step_index, STREAM_ROTATION, seed, block) * r)


def hadamard_scores(residual: Tensor, bases: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """Scores of all atoms, float64 [B, J, P], equal to <atom, pad(r)> / sqrt(P)."""
    v = rotated_residual(residual, step_index, seed, block)
    p = v.shape[-1]
    b = signs(p, torch.arange(bases), step_index, STREAM_BASIS, seed, block)
    return fwht(b * v[:, None]) / math.sqrt(p)


def independent_scores(residual: Tensor, count: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """Scores of codewords 0 ... count-1, float64 [B, K], equal to <word, pad(r)> / sqrt(P)."""
    v = rotated_residual(residual, step_index, seed, block)
    p = v.shape[-1]
    chunk = max(1, (1 << 22) // p)
    parts = [
        signs(p, torch.arange(k, min(k + chunk, count)), step_index, STREAM_INDEPENDENT, seed, block).double() @ v.T
        for k in range(0, count, chunk)
    ]
    return torch.cat(parts).T / math.sqrt(p)


def best_signed(scores: Tensor) -> Tensor:
    """scores [..., choices] -> int64 [...]: 2 * argmax|score| + (score < 0); ties go to the smaller index."""
    size = scores.abs()
    index = torch.arange(scores.shape[-1]).expand_as(scores)
    best = torch.where(size == size.amax(-1, keepdim=True), index, scores.shape[-1]).amin(-1)
    return 2 * best + (scores.gather(-1, best[..., None])[..., 0] < 0)


def hadamard_select(
    residual: Tensor, bins: int, atoms: int, bases: int, step_index: int, seed: int, block: int = 0
) -> Tensor:
    """One signed atom per bin for the views of one block: float [B, D] -> int64 [B, bins] in [0, 2 * bases * atoms)."""
    s = hadamard_scores(residual, bases, step_index, seed, block)  # [B, J, P]
    s = s.unflatten(-1, (bins, -1))[..., :atoms]  # [B, J, M, A]
    return best_signed(s.transpose(1, 2).flatten(2))


def top_signed(scores: Tensor, count: int) -> Tensor:
    """scores [..., choices] -> int64 [..., count]: the tokens of the largest |scores|, best first; ties to the smaller."""
    order = scores.abs().sort(dim=-1, descending=True, stable=True)[1][..., :count]
    return 2 * order + (scores.gather(-1, order) < 0)


def hadamard_top(residual: Tensor, count: int, atoms: int, bases: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """The `count` signed atoms of largest |score| in one bin, best first (Turbo-DDCM): float [B, D] -> int64 [B, count]."""
    return top_signed(hadamard_scores(residual, bases, step_index, seed, block)[..., :atoms].flatten(1), count)


def hadamard_biased(
    residual: Tensor, bias: Tensor, atoms: int, bases: int, step_index: int, seed: int, block: int = 0
) -> Tensor:
    """argmax over atoms k of score_k + bias_k, unsigned (token 2 k): float [B, D], bias [bases * atoms] -> int64 [B, 1]."""
    scores = hadamard_scores(residual, bases, step_index, seed, block)[..., :atoms].flatten(1)
    return 2 * (scores + bias).argmax(-1, keepdim=True)


def hadamard_total(
    tokens: Tensor, d: int, bins: int, atoms: int, bases: int, step_index: int, seed: int, block: int = 0
) -> Tensor:
    """The chosen signed atoms summed: exact integers, int64 [B, D]. tokens [B, bins], or with bins = 1 any number."""
    p = next_pow2(d)
    atom, value = tokens.cpu() >> 1, 1 - 2 * (tokens.cpu() & 1)
    base, row = atom // atoms, atom % atoms + torch.arange(bins) * (p // bins)  # [B, M]
    total = torch.zeros(len(tokens), p, dtype=torch.int64)
    for j in base.unique().tolist():
        w = torch.zeros_like(total).scatter_add_(1, row, torch.where(base == j, value, 0))
        total += fwht(signs(p, j, step_index, STREAM_BASIS, seed, block) * fwht(w))
    return (signs(p, 0, step_index, STREAM_ROTATION, seed, block) * total)[:, :d]


def independent_select(residual: Tensor, bins: int, atoms: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """One signed codeword per bin: float [B, D] -> int64 [B, bins] in [0, 2 * atoms); bin m owns [m*atoms, (m+1)*atoms)."""
    return best_signed(independent_scores(residual, bins * atoms, step_index, seed, block).unflatten(-1, (bins, atoms)))


def independent_top(residual: Tensor, count: int, atoms: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """The `count` signed codewords of largest |score| in one bin, best first: float [B, D] -> int64 [B, count]."""
    return top_signed(independent_scores(residual, atoms, step_index, seed, block), count)


def independent_biased(residual: Tensor, bias: Tensor, step_index: int, seed: int, block: int = 0) -> Tensor:
    """argmax over codewords k of score_k + bias_k, unsigned (token 2 k): float [B, D], bias [K] -> int64 [B, 1].

    With residual = mu and bias = -log T it is the Poisson functional representation of N(mu, I) (docs/codebook.md)."""
    return 2 * (independent_scores(residual, len(bias), step_index, seed, block) + bias).argmax(-1, keepdim=True)


def independent_total(tokens: Tensor, d: int, bins: int, atoms: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """The chosen signed codewords summed: exact integers, int64 [B, D]. tokens [B, bins], or with bins = 1 any number."""
    p = next_pow2(d)
    word, value = (tokens.cpu() >> 1) + torch.arange(bins) * atoms, 1 - 2 * (tokens.cpu() & 1)
    total = torch.zeros(len(tokens), p, dtype=torch.int64)
    for m in range(tokens.shape[1]):
        total += value[:, m : m + 1] * signs(p, word[:, m], step_index, STREAM_INDEPENDENT, seed, block)
    return (signs(p, 0, step_index, STREAM_ROTATION, seed, block) * fwht(total))[:, :d]


def arrival_times(count: int, step_index: int, seed: int, block: int = 0) -> Tensor:
    """T_k of a unit Poisson process, float64 [count]: sums of exponential gaps. Only encoders use them: `log` may differ."""
    return -((words(count, 0, step_index, STREAM_ARRIVAL, seed, block).double() + 0.5) / 2.0**32).log().cumsum(0)


def chunk_order(d: int, step_index: int, seed: int) -> Tensor:
    """A permutation of d dimensions, int64 [d]: sorted by (word, index); chunks are consecutive runs of it."""
    return words(d, 0, step_index, STREAM_CHUNK, seed).sort(stable=True)[1]


# ---- the back end, for all blocks of a batch: see `noisebook.codebook.Backend` ------------------------------------------
def require_finite(residual: Tensor) -> None:
    """ImageError where an entry is NaN or Inf. It waits for the answer, which back ends on a GPU must not do."""
    if not torch.isfinite(residual).all():
        raise ImageError(NOT_FINITE)


def select(residual: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0) -> Tensor:
    require_finite(residual)
    bins, atoms, bases = shape
    views = enumerate(residual.unbind(1), block)
    if kind == "hadamard":
        parts = [hadamard_select(r, bins, atoms, bases, step_index, seed, n) for n, r in views]
    else:
        parts = [independent_select(r, bins, atoms, step_index, seed, n) for n, r in views]
    return torch.stack(parts, 1)


def refined(
    residual: Tensor, tokens: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    return refining.refined(select, noise, residual, tokens, kind, shape, step_index, seed, block)


def top(
    residual: Tensor, count: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    require_finite(residual)
    _, atoms, bases = shape
    views = enumerate(residual.unbind(1), block)
    if kind == "hadamard":
        parts = [hadamard_top(r, count, atoms, bases, step_index, seed, n) for n, r in views]
    else:
        parts = [independent_top(r, count, atoms, step_index, seed, n) for n, r in views]
    return torch.stack(parts, 1)


def biased(
    residual: Tensor, bias: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    require_finite(residual)
    _, atoms, bases = shape
    views = enumerate(zip(residual.unbind(1), bias, strict=True), block)
    if kind == "hadamard":
        parts = [hadamard_biased(r, b, atoms, bases, step_index, seed, n) for n, (r, b) in views]
    else:
        parts = [independent_biased(r, b, step_index, seed, n) for n, (r, b) in views]
    return torch.stack(parts, 1)


@graph_cached(64)  # one or more per step
def chunk_places(dims: int, chunks: int, step_index: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    order = chunk_order(dims, step_index, seed)
    width = -(-dims // chunks)
    full = dims - chunks * (width - 1)  # that many chunks have that width, the others one place less
    places = torch.full((chunks, width), -1)
    places[:full] = order[: full * width].view(full, width)
    places[full:, : width - 1] = order[full * width :].view(chunks - full, width - 1)
    lies = torch.empty_like(order)
    lies[order] = torch.nonzero(places.flatten() >= 0)[:, 0]
    return places.to(device), lies.to(device)


def arrival_bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    few = len(sizes) * max(sizes) <= KEPT
    return (_kept_bias if few else _bias)(sizes, step_index, seed, device)


def _bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    out = torch.full((len(sizes), max(sizes)), -math.inf, dtype=torch.float32)
    for chunk, size in enumerate(sizes):
        out[chunk, :size] = -arrival_times(size, step_index, seed, chunk).log().float()
    return out.to(device)


_kept_bias = graph_cached(64)(_bias)  # one or more per step


def scores(residual: Tensor, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0) -> Tensor:
    """All unsigned atoms of one bin: float32 [B, U, D] -> [B, U, K]. This one runs on the residual's device, in float64."""
    _, atoms, bases = shape
    views = enumerate(residual.unbind(1), block)
    with residual.device:
        if kind == "hadamard":  # [B, J, P], of which the first A of every base are atoms
            parts = [hadamard_scores(r, bases, step_index, seed, n)[..., :atoms].flatten(1) for n, r in views]
        else:
            parts = [independent_scores(r, atoms, step_index, seed, n) for n, r in views]
    return torch.stack(parts, 1).to(residual)


def noise(
    tokens: Tensor, d: int, kind: str, shape: tuple[int, int, int], step_index: int, seed: int, block: int = 0
) -> Tensor:
    bins, atoms, bases = shape
    blocks = enumerate(tokens.unbind(1), block)
    if kind == "hadamard":
        parts = [hadamard_total(t, d, bins, atoms, bases, step_index, seed, n) for n, t in blocks]
    else:
        parts = [independent_total(t, d, bins, atoms, step_index, seed, n) for n, t in blocks]
    return unit_rms(torch.stack(parts, 1))


def backtrace(
    y: Tensor,
    x0_hat: Tensor,
    tokens: Tensor,
    keep: float,
    sigma_up: float,
    kind: str,
    shape: tuple[int, int, int],
    step_index: int,
    seed: int,
    block: int = 0,
) -> Tensor:
    return x0_hat + keep * (y - x0_hat) + sigma_up * noise(tokens, y.shape[-1], kind, shape, step_index, seed, block)
