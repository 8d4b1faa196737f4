"""Selection rules: how the residual of a step becomes tokens, and how tokens become the noise that is injected.

A rule sees views [B, U, D] and tokens [B, T], T the tokens of one step of one image, in the order of `CodecSpec.step_runs`.
Which tokens an encoder chooses is its own business: a decoder takes any.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.codebook import Codebook, reference
from noisebook.errors import SpecError
from noisebook.runtime.cuda_graphs import constants
from noisebook.spec.spec import CodecSpec, Step


@dataclass(frozen=True)
class Rule:
    """One signed atom in each of M bins: the default, fixed-length tokens without a sort or an entropy coder.

    effort  passes of `refined` after the first choice, when encoding
    """

    book: Codebook
    effort: int = 0

    def check(self, bins: int, dims: int) -> None:
        """Raises SpecError where a step of so many bins does not fit views of so many dimensions."""
        self.book.shape(bins, dims)

    def select(self, residual: Tensor, bins: int, number: int, step: Step) -> Tensor:
        """float32 [B, U, D] -> tokens int64 [B, T] of step `number`."""
        tokens = self.book.select(residual, bins, number)
        bits = bins * (self.book.vocabulary.bit_length() - 1)
        for _ in range(self.effort if bits * SPARSE > residual.shape[-1] else 0):
            tokens = refined(self.book, residual, tokens, number)
        return tokens.flatten(1)

    def noise(self, tokens: Tensor, views: tuple[int, int], bins: int, number: int) -> Tensor:
        """z(tokens): int64 [B, T] -> float32 [B, U, D] of root mean square 1; `views` is (U, D)."""
        return self.book.noise(tokens.unflatten(1, (views[0], bins)), views[1], number)

    def backtrace(self, y: Tensor, x0_hat: Tensor, tokens: Tensor, bins: int, number: int, step: Step) -> Tensor:
        """x0_hat + keep (y - x0_hat) + gain z(tokens), all views float32 [B, U, D]."""
        tokens = tokens.unflatten(1, (y.shape[1], bins))
        return self.book.backtrace(y, x0_hat, tokens, step.keep, step.gain, number)


SPARSE = 40  # dimensions a bit beyond which atoms hardly disturb each other, and `refined` gains less than a percent
GROUPS = 4  # of bins that `refined` chooses anew, one group after the other


def refined(book: Codebook, residual: Tensor, tokens: Tensor, number: int) -> Tensor:
    """Chooses the tokens of each quarter of the bins anew, given all others: float32 [B, U, D], int64 [B, U, M] -> the same.

    Bins are chosen as if each were alone, but atoms of different bases are not orthogonal. For z the noise of all tokens
    and c = <z, u> / D its cosine with the residual's direction u, the cosine grows most along u - c z', z' the noise of the
    tokens that stay, in its share sqrt(m / M) of the length (docs/findings/refining-tokens.md)."""
    views, bins = residual.shape[-1], tokens.shape[-1]
    groups = min(GROUPS, bins)
    if groups < 2:
        return tokens
    u = residual / residual.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
    pool, places = book.pooled(bins, views)
    tokens = tokens.clone()
    for first in range(groups):
        cosine = (book.noise(tokens, views, number) * u).mean(-1, keepdim=True)
        placed = places(tokens).unflatten(-1, (-1, groups))
        others = torch.cat([placed[..., :first], placed[..., first + 1 :]], -1).flatten(-2)
        rest = pool.noise(others, views, number, pooled=True)
        missing = u - cosine * math.sqrt(1 - 1 / groups) * rest
        tokens[..., first::groups] = book.select(missing, bins, number)[..., first::groups]
    return tokens


class Top(Rule):
    """The M atoms of largest |score| of the whole vocabulary, with their signs, in ascending order (Turbo-DDCM,
    arXiv 2511.06424)."""

    def check(self, bins: int, dims: int) -> None:
        self.book.shape(1, dims)

    def select(self, residual: Tensor, bins: int, number: int, step: Step) -> Tensor:
        return self.book.top(residual, bins, number).sort(-1)[0].flatten(1)

    def noise(self, tokens: Tensor, views: tuple[int, int], bins: int, number: int) -> Tensor:
        return self.book.noise(tokens.unflatten(1, (views[0], bins)), views[1], number, pooled=True)

    def backtrace(self, y: Tensor, x0_hat: Tensor, tokens: Tensor, bins: int, number: int, step: Step) -> Tensor:
        tokens = tokens.unflatten(1, (y.shape[1], bins))
        return self.book.backtrace(y, x0_hat, tokens, step.keep, step.gain, number, pooled=True)


class _Plain(Rule):
    """A rule without a fused update."""

    def backtrace(self, y: Tensor, x0_hat: Tensor, tokens: Tensor, bins: int, number: int, step: Step) -> Tensor:
        noise = self.noise(tokens, (y.shape[1], y.shape[2]), bins, number)
        return x0_hat + step.keep * (y - x0_hat) + step.gain * noise


@dataclass(frozen=True)
class Pursuit(_Plain):
    """Matching pursuit (DDCM, arXiv 2502.01189): after the best atom, M - 1 rounds that each mix in one more,
    sqrt(g) z + sqrt(1 - g) z_k at root mean square 1, with the coefficient g in {1, ..., 2^C - 1} / (2^C - 1) and the atom
    (here with its sign) that raise <z, r> most. A coefficient of 0 ends it, and all later tokens are 0.

    Tokens: M atoms a view, then M - 1 coefficients a view. All scores are stored: for vocabularies up to about 2^16.
    Sums are float32 in a fixed order, not exact integers as in the other rules.
    """

    coefficient_bits: int = 0

    def check(self, bins: int, dims: int) -> None:
        self.book.shape(1, dims)

    def select(self, residual: Tensor, bins: int, number: int, step: Step) -> Tensor:
        batch, units, dims = residual.shape
        atoms = self.book.select(residual, 1, number)
        if bins == 1:
            return atoms.flatten(1)
        scores = self.book.scores(residual, number)  # [B, U, K]
        z = self.book.noise(atoms, dims, number)
        found, marks, going = [atoms[..., 0]], [], torch.ones(batch, units, dtype=torch.bool, device=z.device)
        largest = (1 << self.coefficient_bits) - 1
        for _ in range(bins - 1):
            inner = (z * residual).sum(-1)
            along = self.book.scores(z, number)
            apart = along.abs() < 0.9 * dims  # an atom that z holds already: lengths of cut atoms are not known so well
            best, atom, mark = inner.clone(), torch.zeros_like(atoms[..., 0]), torch.zeros_like(atoms[..., 0])
            for c in range(1, largest):  # c = largest keeps z as it is
                a, b = math.sqrt(c / largest), math.sqrt(1 - c / largest)
                for sign in (0, 1):
                    flip = b * (1 - 2 * sign)
                    length = (1 + 2 * a * flip * along / dims).clamp(min=1e-6).sqrt()
                    value, k = ((a * inner[..., None] + flip * scores) / length).where(apart, -math.inf).max(-1)
                    better = going & (value > best * (1 + 1e-6))
                    best, mark = torch.where(better, value, best), torch.where(better, c, mark)
                    atom = torch.where(better, 2 * k + sign, atom)
            going = mark > 0
            found.append(atom)
            marks.append(mark)
            z = self._mixed(z, atom, mark, number)
        return torch.cat([torch.stack(found, -1).flatten(1), torch.stack(marks, -1).flatten(1)], 1)

    def _mixed(self, z: Tensor, atom: Tensor, mark: Tensor, number: int) -> Tensor:
        """One round: views float32 [B, U, D], atoms and coefficients int64 [B, U] -> the mixture."""
        share = (mark.float() / ((1 << self.coefficient_bits) - 1))[..., None]
        other = self.book.noise(atom[..., None], z.shape[-1], number)
        mixed = share.sqrt() * z + (1 - share).sqrt() * other
        mixed = mixed / mixed.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
        return torch.where(mark[..., None] > 0, mixed, z)

    def noise(self, tokens: Tensor, views: tuple[int, int], bins: int, number: int) -> Tensor:
        atoms = tokens[:, : views[0] * bins].unflatten(1, (views[0], bins))
        marks = tokens[:, views[0] * bins :].unflatten(1, (views[0], bins - 1)) if bins > 1 else None
        z = self.book.noise(atoms[..., :1], views[1], number)
        for m in range(1, bins):
            z = self._mixed(z, atoms[..., m], marks[..., m - 1], number)  # type: ignore[index]
        return z


@constants(64)  # one or more a step
def chunk_places(dims: int, chunks: int, step: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(where each place of each chunk lies in the view, -1: padding, int64 [U, W]; where each dimension lies, int64 [D])."""
    order = reference.chunk_order(dims, step, seed)
    width = -(-dims // chunks)
    full = dims - chunks * (width - 1)  # so many chunks have that width, the rest one place less
    places = torch.full((chunks, width), -1)
    places[:full] = order[: full * width].view(full, width)
    places[full:, : width - 1] = order[full * width :].view(chunks - full, width - 1)
    lies = torch.empty_like(order)
    lies[order] = torch.nonzero(places.flatten() >= 0)[:, 0]
    return places.to(device), lies.to(device)


def arrival_bias(sizes: tuple[int, ...], step: int, seed: int, device: torch.device) -> Tensor:
    """-log T_k of the arrival times of each chunk, -inf from its size on: float32 [U, K], K the largest size."""
    few = len(sizes) * max(sizes) <= 1 << 22  # the chunks of a photograph would fill gigabytes
    return (_kept_arrivals if few else _arrivals)(sizes, step, seed, device)


def _arrivals(sizes: tuple[int, ...], step: int, seed: int, device: torch.device) -> Tensor:
    with device:  # times are drawn there: on a CPU those of a photograph's chunks take minutes
        out = torch.full((len(sizes), max(sizes)), -math.inf, dtype=torch.float32)
        for unit, size in enumerate(sizes):
            out[unit, :size] = -reference.arrival_times(size, step, seed, unit).log().float()
    return out


_kept_arrivals = constants(64)(_arrivals)  # one or more a step


@dataclass(frozen=True)
class Poisson(_Plain):
    """DiffC (arXiv 2501.09815): the noise is a sample of N(mu, I), mu what the posterior of the step wants, sent by the
    Poisson functional representation: argmin over k of log T_k - <z_k, mu>, in chunks of shuffled dimensions.

    A step's bits of divergence are part of the specification, so that both ends cut the same chunks whatever the image.
    """

    spec: CodecSpec | None = None

    def _sizes(self, bins: int) -> tuple[int, ...]:
        assert self.spec is not None
        return tuple(run.vocabulary for run in self.spec.step_runs(bins) for _ in range(run.count))

    def _book(self, sizes: tuple[int, ...]) -> Codebook:
        return Codebook(self.book.law, 2 * max(sizes), self.book.seed)

    def check(self, bins: int, dims: int) -> None:
        chunks = len(self._sizes(bins))
        if chunks > dims:
            raise SpecError(
                f"{bins} bits of divergence cut a view of {dims} dimensions in {chunks} chunks, some of them "
                "empty: use fewer bits a step"
            )

    def select(self, residual: Tensor, bins: int, number: int, step: Step) -> Tensor:
        sizes = self._sizes(bins)
        places, _ = chunk_places(residual.shape[-1], len(sizes), number, self.book.seed, residual.device)
        mu = residual[:, 0] * ((1 - (step.keep if step.lam < math.inf else 0)) / step.gain)
        chunks = F.pad(mu, (0, 1))[:, places]  # place -1 is the padding
        bias = arrival_bias(sizes, number, self.book.seed, residual.device)
        return self._book(sizes).biased(chunks, bias, number)[..., 0] >> 1

    def noise(self, tokens: Tensor, views: tuple[int, int], bins: int, number: int) -> Tensor:
        sizes = self._sizes(bins)
        places, order = chunk_places(views[1], len(sizes), number, self.book.seed, tokens.device)
        chunks = self._book(sizes).noise(2 * tokens[..., None], places.shape[1], number, pooled=True)
        return chunks.flatten(1)[:, None, order]


def rule_of(spec: CodecSpec, effort: int = 0) -> Rule:
    """The rule of a specification, encoding with `effort`."""
    book = Codebook(spec.law, spec.vocabulary, spec.seed)
    if spec.rule == "top":
        return Top(book)
    if spec.rule == "pursuit":
        return Pursuit(book, coefficient_bits=spec.coefficient_bits)
    if spec.rule == "poisson":
        return Poisson(book, spec=spec)
    return Rule(book, effort)
