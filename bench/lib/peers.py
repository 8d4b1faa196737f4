"""The steps of Turbo-DDCM, DDCM, DiffC and gDDCM written from their papers, to be held against the engine's rules.

Nothing of noisebook is imported here: what both sides share is the function x0_hat = D(y, sigma), which is handed in. The
walks use the papers' own coordinates, x = sqrt(abar) x0 + sqrt(1 - abar) eps with abar = 1 / (1 + sigma^2), and DDPM's
posterior. New K atoms are drawn at each step, independent normal numbers of torch's generator.

An atom is either *drawn*, all D numbers of it, or *in law*: its inner product with the direction u of the residual is a
standard normal number, and what is orthogonal to u is normal too and independent of it. So K scalars and one vector have
the distribution of a choice among K drawn atoms, exactly, and a photograph takes seconds. Nobody could decode those.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]  # (y [B, C, H, W], sigma) -> x0_hat
PART = 1 << 26  # numbers of a codebook that are in memory at once

# Turbo-DDCM times of 1000, of its repository at commit 77353e4 (April 2026); the tables of the paper are of an older grid
# fmt: off
TURBO_TIMES = (
    999, 972, 949, 929, 897, 869, 834, 805, 780, 751, 726, 704, 688, 670, 648, 627, 608, 591, 578, 561, 546, 530, 520, 510,
    498, 491, 480, 465, 455, 447, 438, 429, 419, 410, 402, 390, 380, 371, 361, 353, 345, 336, 326, 319, 313, 305, 296, 289,
    282, 276, 269, 261, 254, 247, 242, 237, 231, 224, 219, 213, 209, 204, 200, 194, 189, 185, 181, 175, 170, 167, 163, 160,
    156, 153, 149, 146, 143, 139, 135, 132, 129, 125, 121, 118, 116, 113, 110, 107, 104, 101, 99, 96, 94, 92, 90, 87, 85, 82,
    *range(80, 48, -2), *range(48, 0, -1),
)
# fmt: on


# ---- grids --------------------------------------------------------------------------------------------------------------
def stable_diffusion() -> np.ndarray:
    """sigma of the 1000 times of Stable Diffusion's scaled-linear noise, rising, float64."""
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return np.sqrt((1 - abar) / abar)


def turbo_grid(steps: int) -> list[float]:
    """steps + 1 levels: evenly picked places of its grid, which lies between 14.7 and .04."""
    places = [round(i * (len(TURBO_TIMES) - 1) / steps) for i in range(steps + 1)]
    return [float(stable_diffusion()[TURBO_TIMES[i]]) for i in places]


def ddcm_grid(steps: int) -> list[float]:
    """steps + 1 levels: evenly spaced times."""
    return [float(stable_diffusion()[round(999 - 999 * i / steps)]) for i in range(steps + 1)]


# ---- atoms --------------------------------------------------------------------------------------------------------------
def generator(device: torch.device, *key: int) -> torch.Generator:
    """A source of random numbers that belongs to a key of whole numbers; torch's looks at 32 bits of a seed."""
    return torch.Generator(device).manual_seed(zlib.crc32(repr(key).encode()))


@dataclass(frozen=True)
class Atoms:
    """K atoms of D independent standard normal numbers. They are drawn in parts, and again whenever they are asked for,
    but where all fit into one part."""

    count: int
    dims: int
    key: tuple[int, ...]
    device: torch.device

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first atom, atoms [n, D]) until all have come."""
        size = max(1, PART // self.dims)
        for first in range(0, self.count, size):
            rows, source = min(size, self.count - first), generator(self.device, *self.key, first)
            yield first, torch.randn(rows, self.dims, device=self.device, generator=source)

    def scores(self, vectors: Tensor) -> Tensor:
        """Inner products of [B, D] with all atoms: [B, K]."""
        return torch.cat([vectors @ part.T for _, part in self.parts()], 1)

    def best(self, vectors: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(numbers [B], atoms [B, D]) of the largest inner product with [B, D], plus a bias [B, K] if there is one."""
        value = torch.full((len(vectors),), -math.inf, device=self.device)
        number, found = torch.zeros_like(value, dtype=torch.int64), torch.zeros_like(vectors)
        for first, part in self.parts():
            scores = vectors @ part.T
            scores = scores if bias is None else scores + bias[:, first : first + len(part)]
            highest, k = scores.max(1)
            better = highest > value
            value, number = torch.where(better, highest, value), torch.where(better, first + k, number)
            found = torch.where(better[:, None], part[k], found)
        return number, found

    def mixed(self, numbers: Tensor, weights: Tensor) -> Tensor:
        """Atoms of these numbers [B, M] summed with weights [B, M]: [B, D]."""
        out = torch.zeros(len(numbers), self.dims, device=self.device)
        for first, part in self.parts():
            inside = (numbers >= first) & (numbers < first + len(part))
            if inside.any():
                dense = torch.zeros(len(numbers), len(part), device=self.device)
                dense.scatter_add_(1, (numbers - first).clamp(0, len(part) - 1), torch.where(inside, weights, 0.0))
                out += dense @ part
        return out


class Held(Atoms):
    """The same, drawn once: for codebooks that fit into one part."""

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        if "book" not in self.__dict__:
            object.__setattr__(self, "book", list(super().parts()))
        yield from self.__dict__["book"]


def atoms(count: int, dims: int, key: tuple[int, ...], device: torch.device) -> Atoms:
    return (Held if count * dims <= PART else Atoms)(count, dims, key, device)


def direction(vectors: Tensor) -> Tensor:
    """[..., D] at length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def across(unit: Tensor, source: torch.Generator) -> Tensor:
    """Normal numbers orthogonal to the unit vectors [..., D]."""
    noise = torch.randn(unit.shape, device=unit.device, generator=source)
    return noise - (noise * unit).sum(-1, keepdim=True) * unit


# ---- Turbo-DDCM and DDCM: what is chosen for a residual [B, D] ------------------------------------------------------------
def turbo(residual: Tensor, codebook: int, chosen: int, key: tuple[int, ...], drawn: bool) -> Tensor:
    """Turbo-DDCM (arXiv 2511.06424): the M = `chosen` of K = `codebook` atoms of largest |inner product|, with their signs,
    summed and divided by the standard deviation of the sum."""
    if drawn:
        book = atoms(codebook, residual.shape[1], key, residual.device)
        scores = book.scores(residual)
        numbers = scores.abs().topk(chosen)[1]
        z = book.mixed(numbers, scores.gather(1, numbers).sign())
    else:
        source, unit = generator(residual.device, *key), direction(residual)
        scores = torch.randn(len(residual), codebook, device=residual.device, generator=source)
        along = scores.abs().topk(chosen)[0].sum(1, keepdim=True)
        z = along * unit + math.sqrt(chosen) * across(unit, source)
    return z / z.std(1, keepdim=True)


def ddcm(residual: Tensor, codebook: int, key: tuple[int, ...], drawn: bool) -> Tensor:
    """DDCM (arXiv 2502.01189): the one atom of K of largest inner product, unchanged."""
    if drawn:
        return atoms(codebook, residual.shape[1], key, residual.device).best(residual)[1]
    source, unit = generator(residual.device, *key), direction(residual)
    best = torch.randn(len(residual), codebook, device=residual.device, generator=source).amax(1, keepdim=True)
    return best * unit + across(unit, source)


def pursuit(residual: Tensor, codebook: int, chosen: int, bits: int, key: tuple[int, ...]) -> Tensor:
    """DDCM's matching pursuit: M - 1 rounds mix one more atom into the best one, sqrt(g) z + sqrt(1 - g) z_k at standard
    deviation 1, with the atom and the g of {1, ..., 2^C - 1} / (2^C - 1) whose inner product is largest; a round that
    raises nothing ends it. Only of drawn atoms: their inner products with each other matter."""
    dims = residual.shape[1]
    book = atoms(codebook, dims, key, residual.device)
    scores = book.scores(residual)
    parts = [(part.sum(1), part.square().sum(1)) for _, part in book.parts()]
    sums, squares = (torch.cat(some)[None] for some in zip(*parts, strict=True))  # [1, K]
    best = scores.argmax(1, keepdim=True)
    z, going = book.mixed(best, torch.ones_like(scores[:, :1])), torch.ones_like(best, dtype=torch.bool)
    for _ in range(chosen - 1):
        inner, along = (z * residual).sum(1, keepdim=True), book.scores(z)
        value, number, share = inner.clone(), best, torch.ones_like(inner)
        for step in range(1, (1 << bits) - 1):
            g = step / ((1 << bits) - 1)
            a, b = math.sqrt(g), math.sqrt(1 - g)
            mean = (a * z.sum(1, keepdim=True) + b * sums) / dims
            power = (g * z.square().sum(1, keepdim=True) + (1 - g) * squares + 2 * a * b * along) / dims
            deviation = ((power - mean.square()) * dims / (dims - 1)).clamp(min=1e-12).sqrt()
            found, k = ((a * inner + b * scores) / deviation).max(1, keepdim=True)
            better = going & (found > value)
            value, number = torch.where(better, found, value), torch.where(better, k, number)
            share = torch.where(better, g, share)
        going = share < 1
        mixed = share.sqrt() * z + book.mixed(number, (1 - share).sqrt())
        z = torch.where(going, mixed / mixed.std(1, keepdim=True), z)
    return z


# ---- DiffC --------------------------------------------------------------------------------------------------------------
def chunk_bits(divergence: float, largest: int, padding: int) -> list[int]:
    """Index bits of each chunk of a step of that many bits of divergence: m = ceil(n / (largest - padding)) chunks share
    n + padding m bits as evenly as they can, the larger first, n the whole bits."""
    whole = max(1, math.ceil(divergence))
    count = -(-whole // (largest - padding))
    each, more = divmod(whole + padding * count, count)
    return [each + 1] * more + [each] * (count - more)


def chunk_labels(bits: Sequence[int], dims: int, step: int) -> np.ndarray:
    """The chunk of each dimension [D]: in proportion to index bits, the last has the rest, shuffled by the step's number.
    ValueError where a chunk has no dimension."""
    sizes = [dims * b // sum(bits) for b in bits[:-1]]
    sizes.append(dims - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(f"{sum(bits)} index bits cut {dims} dimensions in {len(bits)} chunks, some of them empty")
    labels = np.repeat(np.arange(len(bits)), sizes)
    np.random.default_rng(step).shuffle(labels)
    return labels


def zipf_bits(index: np.ndarray, values: int, divergence: float) -> np.ndarray:
    """Code length of indices below `values` under the published Zipf law for chunks of that divergence: p(k) in
    proportion to (k + 1)^-s, s = 1 + 1 / (D + ln(e + 1) / e)."""
    s = 1 + 1 / (divergence + math.log(math.e + 1) / math.e)
    normaliser = np.sum(np.arange(1, values + 1, dtype=np.float64) ** -s)
    return math.log2(normaliser) + s * np.log2(index + 1.0)


@dataclass(frozen=True)
class DiffC:
    """Reverse-channel coding of DiffC (arXiv 2412.12935 and 2501.09815): a sample of N(mu, I) in chunks, each by the Poisson
    functional representation, the candidate of least ln T_k - <z_k, mu> of 2^c, T_k the arrivals of a Poisson process.

    budgets   bits of divergence of each step, of other pictures; None: each picture's own, |mu|^2 / (2 ln 2), as published
              (a decoder would need them, and they are not counted)
    """

    budgets: Sequence[float] | None = None
    chunk: int = 16
    padding: int = 2
    seed: int = 0
    drawn: bool = True

    def step(self, mu: Tensor, index: int) -> tuple[Tensor, list[float]]:
        """(samples [B, D], bits of each picture) of a step for mu [B, D]."""
        if self.budgets is not None:
            return self._coded(mu, index, float(self.budgets[index]), 0)
        own = (mu.double().square().sum(1) / (2 * math.log(2))).tolist()
        parts = [self._coded(mu[i : i + 1], index, own[i], i) for i in range(len(mu))]
        return torch.cat([z for z, _ in parts]), [b for _, bits in parts for b in bits]

    def _coded(self, mu: Tensor, index: int, divergence: float, first: int) -> tuple[Tensor, list[float]]:
        bits = chunk_bits(divergence, self.chunk, self.padding)
        labels = torch.from_numpy(chunk_labels(bits, mu.shape[1], index)).to(mu.device)
        if self.drawn:
            z, indices = self._drawn(mu, labels, bits, index)
        else:
            z, indices = self._in_law(mu, labels, bits, generator(mu.device, self.seed, index, first))
        length = np.zeros(len(mu))
        for size in set(bits):
            some = indices[:, [c == size for c in bits]]
            length += zipf_bits(some, 1 << size, divergence * size / sum(bits)).sum(1)
        return z, length.tolist()

    def _drawn(self, mu: Tensor, labels: Tensor, bits: list[int], index: int) -> tuple[Tensor, np.ndarray]:
        z, indices = torch.empty_like(mu), []
        for i, size in enumerate(bits):
            places = (labels == i).nonzero()[:, 0]
            book = atoms(1 << size, len(places), (self.seed, index, i), mu.device)
            late = arrivals(len(mu), size, generator(mu.device, self.seed, index, i, 1))
            best, z[:, places] = book.best(mu[:, places], -late)
            indices.append(best.cpu().numpy())
        return z, np.stack(indices, 1)

    def _in_law(self, mu: Tensor, labels: Tensor, bits: list[int], source: torch.Generator) -> tuple[Tensor, np.ndarray]:
        nothing = torch.zeros(len(mu), len(bits), device=mu.device)
        length = nothing.index_add(1, labels, mu.square()).sqrt().clamp(min=1e-30)  # |mu| of each chunk
        along, indices = torch.empty_like(length), torch.empty_like(length, dtype=torch.int64)
        for size in sorted(set(bits)):
            where = [i for i, c in enumerate(bits) if c == size]
            few = max(1, (PART >> size) // len(mu))
            for some in (where[i : i + few] for i in range(0, len(where), few)):
                shape = (len(mu) * len(some), 1 << size)
                scores = torch.randn(shape, device=mu.device, generator=source)
                weight = arrivals(shape[0], size, source) - scores * length[:, some].reshape(-1, 1)
                best = weight.argmin(1, keepdim=True)
                along[:, some] = scores.gather(1, best).view(len(mu), -1)
                indices[:, some] = best.view(len(mu), -1)
        unit = mu / length[:, labels]
        noise = torch.randn(mu.shape, device=mu.device, generator=source)
        away = along - nothing.index_add(1, labels, noise * unit)
        return noise + away[:, labels] * unit, indices.cpu().numpy()


def arrivals(count: int, bits: int, source: torch.Generator) -> Tensor:
    """ln T_k of `count` Poisson processes: [count, 2^bits]."""
    steps = torch.empty(count, 1 << bits, device=source.device).exponential_(generator=source)
    return steps.cumsum(1).log()


# ---- walks --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Posterior:
    """DDPM's posterior N(of_x0 x0 + of_x x, deviation^2) of the next x (Ho et al. 2020, eq. 7)."""

    of_x0: float
    of_x: float
    deviation: float

    @classmethod
    def between(cls, sigma: float, lower: float) -> "Posterior":
        noise, rest = sigma**2 / (1 + sigma**2), lower**2 / (1 + lower**2)  # 1 - abar
        beta = (sigma**2 - lower**2) / (1 + sigma**2)
        return cls(
            beta / noise / math.sqrt(1 + lower**2), math.sqrt(1 - beta) * rest / noise, math.sqrt(rest / noise * beta)
        )


Chooser = Callable[[Tensor, int, float], tuple[Tensor, Sequence[float]]]
# (residual [B, D], number of the step, mu = that * residual) -> (z [B, D], bits of each picture that are not fixed)


def walk(
    denoise: Denoiser, x0: Tensor, start: Tensor, levels: Sequence[float], coded: Sequence[bool], choose: Chooser
) -> tuple[Tensor, np.ndarray]:
    """(last x0_hat, bits of each picture that `choose` says) of pictures x0 [B, C, H, W] in [-1, 1]: down through `levels`
    from `start` [1, C, H, W], normal numbers that both ends know; a DDIM step without bits where `coded` is False."""
    x = start.expand_as(x0)
    spent = np.zeros(len(x0))
    for i, (sigma, lower) in enumerate(zip(levels, levels[1:], strict=False)):
        x0_hat = denoise(x * math.sqrt(1 + sigma**2), sigma)
        if not coded[i]:
            eps = (x * math.sqrt(1 + sigma**2) - x0_hat) / sigma
            x = (x0_hat + lower * eps) / math.sqrt(1 + lower**2)
            continue
        law = Posterior.between(sigma, lower)
        z, bits = choose((x0 - x0_hat).flatten(1), i, law.of_x0 / law.deviation)
        spent += np.array(bits) if len(bits) else 0
        x = law.of_x0 * x0_hat + law.of_x * x + law.deviation * z.view_as(x)
    return denoise(x * math.sqrt(1 + levels[-1] ** 2), levels[-1]), spent


def gddcm(
    denoise: Denoiser, x0: Tensor, sigma: float, rhos: Sequence[float], codebook: int, seed: int, drawn: bool
) -> Tensor:
    """gDDCM (arXiv 2511.13387) at p = 0: from the atom nearest to x0, at one level `sigma`, each step follows the ODE down
    to rho sigma and goes back up with the atom of K nearest to the residual. The last x0_hat."""
    y = sigma * ddcm(x0.flatten(1), codebook, (seed, 1 << 41), drawn).view_as(x0)
    for i, rho in enumerate(rhos):
        x0_hat = denoise(y, sigma)
        z = ddcm((x0 - x0_hat).flatten(1), codebook, (seed, i), drawn).view_as(x0)
        y = y + (rho * sigma - sigma) * (y - x0_hat) / sigma  # Euler: dy / dsigma = (y - D) / sigma
        y = y + sigma * math.sqrt(1 - rho**2) * z
    return denoise(y, sigma)
