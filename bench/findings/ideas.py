"""Ideas for fewer bits that were tried: python -m bench.findings.ideas [--only NAME]

On random residuals: what share of the rate-distortion limit the tokens of one step reach (refining.py says what that is).
On CIFAR-10 with a trained backbone: PSNR at equal bits. Each idea is written here only, with pieces of the engine; what won
went into the engine (docs/findings). Writes bench/results/ideas.json and the tables of docs/findings/coding-ideas.md.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.lib import metrics, page, rivals
from bench.lib.comparison import backbone_of, cifar, curve_of
from bench.lib.record import DATA, RESULTS, ROOT, write
from noisebook.backbones import Backbone
from noisebook.codebook import Codebook
from noisebook.codec.codec import Codec
from noisebook.codec.stream import Segment
from noisebook.runtime.pixels import to_uint8
from noisebook.spec.step import Step, StepIndex

NAME, PAGE = "ideas", ROOT / "docs/findings/coding-ideas.md"
D, DRAWS, STEP = 3072, 64, 3
BACKBONE, IMAGES, CALLS, RATES = "cifar10-flow", 64, 25, (0.25, 1, 4)


# ---- random residuals ---------------------------------------------------------------------------------------------------
def limit(bits: float) -> float:
    return 2 * bits * math.log(2) / D


def share(z: Tensor, residual: Tensor, bits: float) -> tuple[float, float]:
    cosine = torch.nn.functional.cosine_similarity(z, residual, dim=-1).flatten().double()
    return metrics.interval(-torch.log1p(-cosine.square()) / limit(bits))


def residuals() -> Tensor:
    return torch.randn(DRAWS, 1, D, generator=torch.Generator().manual_seed(0))


def in_turn(book: Codebook, residual: Tensor, bins: int, groups: int) -> Tensor:
    """The bins in `groups` turns, each for what the tokens chosen before it leave of the residual."""
    pool, places = book.pooled(bins, D)
    tokens = book.select(residual, bins, STEP)
    for first in range(1, groups):
        before = places(tokens).unflatten(-1, (-1, groups))[..., :first].flatten(-2)
        rest = pool.noise(before, D, STEP, pooled=True)
        left = residual - (rest * residual).mean(-1, keepdim=True) * rest
        tokens[..., first::groups] = book.select(left, bins, STEP)[..., first::groups]
    return tokens


def turns() -> list[dict]:
    """Fewer, larger tokens, and updates of the residual inside a step."""
    rows, residual = [], residuals()
    for bins, log in ((256, 10), (64, 16), (32, 20), (16, 24)):
        book, bits = Codebook("hadamard", 1 << log, 1), bins * log
        tokens = [in_turn(book, residual, bins, groups) for groups in (1, 4, 16)]
        tokens.append(book.refined(residual, tokens[0], STEP))
        found = [share(book.noise(t, D, STEP), residual, bits) for t in tokens]
        rows.append({"budget": bins, "log_vocab_size": log, "share": found})
    return rows


def coefficients() -> list[dict]:
    """The best real coefficient for each atom, for nothing: an upper bound of what coding them could bring."""
    rows, residual = [], residuals()
    for bins in (16, 64, 256):
        book, bits = Codebook("hadamard", 1 << 16, 1), bins * 16
        pool, places = book.pooled(bins, D)
        tokens = book.refined(residual, book.select(residual, bins, STEP), STEP)
        best = []
        for one, r in zip(places(tokens)[:, 0], residual[:, 0], strict=True):
            atoms = pool.noise(one[None, :, None].expand(1, -1, 1).reshape(bins, 1, 1), D, STEP, pooled=True)[:, 0]
            best.append(atoms.T @ torch.linalg.lstsq(atoms.T, r[:, None]).solution)
        z = torch.stack(best)[:, None, :, 0]
        equal = book.noise(tokens, D, STEP)
        found = [share(equal, residual, bits), share(z, residual, bits), share(z, residual, bits + 2 * bins)]
        rows.append({"budget": bins, "share": found})
    return rows


def hadamard(order: int) -> Tensor:
    """A Hadamard matrix of order 12 * 2^m (Paley's of order 12, doubled) or 2^m, float32."""
    base = torch.ones(1, 1)
    if order % 3 == 0:
        squares = {i * i % 11 for i in range(1, 11)}
        q = torch.tensor([[0 if i == j else 1 if (i - j) % 11 in squares else -1 for j in range(11)] for i in range(11)])
        base = torch.ones(12, 12)
        base[1:, 1:] = q + torch.eye(11)
        base[1:, 0] = -1
    while len(base) < order:
        base = torch.cat([torch.cat([base, base], 1), torch.cat([base, -base], 1)])
    assert torch.equal(base @ base.T, order * torch.eye(order))
    return base


def orders() -> list[dict]:
    """Codebooks of order 3072 = 12 * 256, which holds D without a rest, against 4096, of which D rows are cut."""
    residual, rows = residuals()[:, 0], []
    for bins in (16, 64, 256):
        row: dict[str, Any] = {"budget": bins, "share": []}
        for order in (4096, 3072):
            h, width = hadamard(order), order // bins
            draw = torch.Generator().manual_seed(1)
            rest = torch.nn.functional.pad(residual, (0, order - D))
            best, z = torch.full((DRAWS, bins), -1.0), torch.zeros(DRAWS, bins, dtype=torch.int64)
            bases = round(32768 / width)
            signs = [1 - 2 * torch.randint(0, 2, (order,), generator=draw).float() for _ in range(bases)]
            for j, sign in enumerate(signs):
                scores = (rest * sign) @ h
                top, at = scores.abs().view(DRAWS, bins, width).max(-1)
                row_of = at + torch.arange(bins) * width
                token = 2 * (j * order + row_of) + (scores.gather(1, row_of) < 0)
                z, best = torch.where(top > best, token, z), torch.maximum(best, top)
            noise = torch.zeros(DRAWS, order)
            for n in range(DRAWS):
                for token in z[n].tolist():
                    atom = h[:, token // 2 % order] * signs[token // 2 // order]
                    noise[n] += atom * (-1 if token & 1 else 1)
            bits = bins * math.log2(2 * bases * width)
            row["share"].append(share(noise[:, :D], residual, bits))
        rows.append(row)
    return rows


# ---- images -------------------------------------------------------------------------------------------------------------
Chooser = Callable[[Segment, Tensor], Tensor]


class Bench:
    """One codec of the comparison on CIFAR-10, and walks of it with other choices than the encoder's."""

    def __init__(self, bpp: float, calls: int = CALLS, backbone: Backbone | None = None, candidates: int = 1):
        _, (self.images,) = cifar(IMAGES)
        place = rivals.Place(backbone_of(BACKBONE, "cpu"), curve_of(BACKBONE), 32, 32)
        self.spec = rivals.ours(place, 1024 * bpp, calls)
        self.codec = Codec(self.spec, backbone or place.backbone, effort=1, candidates=candidates)
        self.stream = self.codec.stream(32, 32)
        self.x0 = self.stream.views(self.images.float() / 127.5 - 1)

    def select(self, which: Segment, residual: Tensor) -> Tensor:
        rule = self.codec.start_rule if which.step_index == StepIndex.START else self.codec.rule
        step = self.step_of(which)
        return rule.select(residual, which.budget, which.step_index, step.kept, step.sigma_up)

    def step_of(self, which: Segment) -> Step:
        return self.spec.schedule[0 if which.step_index == StepIndex.START else which.step_index]

    def plain(self, which: Segment, x0_hat: Tensor) -> Tensor:
        return self.select(which, self.x0 - x0_hat)

    def psnr(self, choose: Chooser | None = None) -> float:
        decoded = self.codec.walk(self.stream, len(self.images), choose or self.plain)
        return float(metrics.psnr(self.images, to_uint8(decoded)).mean())


class Every(Backbone):
    """Another backbone's x0_hat, given twice: once for its own level, once again for the next."""

    def __init__(self, inner: Backbone):
        super().__init__()
        self.inner, self.calls, self.last = inner, 0, torch.empty(0)
        self.name, self.fingerprint, self.channels, self.size = inner.name, inner.fingerprint, inner.channels, inner.size

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        if self.calls % 2 == 0:
            self.last = self.inner(y, sigma, cond)
        self.calls += 1
        return self.last


def reuse() -> list[dict]:
    """Twice the steps at the same network calls: x0_hat of every second step is that of the one before."""
    rows = []
    for bpp in RATES[1:]:  # at the lowest rate there are too few tokens for so many steps
        every = Every(backbone_of(BACKBONE, "cpu"))
        twice = Bench(bpp, 2 * CALLS - 1, every)
        found = [Bench(bpp).psnr(), twice.psnr()]
        assert math.ceil(every.calls / 2) == CALLS, every.calls
        rows.append({"bpp": bpp, "psnr": found})
    return rows


def ahead() -> list[dict]:
    """The engine's look-ahead, at few and at more network calls of the decoder."""
    rows = []
    for calls in (8, CALLS):
        for bpp in RATES:
            found = []
            for candidates in (1, 2, 4, 8):
                bench = Bench(bpp, calls, candidates=candidates)
                _, decoded = bench.codec.reconstruct(bench.images)
                found.append(float(metrics.psnr(bench.images, to_uint8(decoded)).mean()))
            rows.append({"bpp": bpp, "nfe": calls, "psnr": found})
    return rows


def frequencies() -> list[dict]:
    """The residual weighted by (s / (s + sigma^2))^a before tokens are chosen, s the power spectrum of training images."""
    train = DATA / "cifar10_train.npz"
    import numpy as np

    with np.load(train) as data:
        x = torch.from_numpy(data["images"][:2000]).permute(0, 3, 1, 2).float() / 127.5 - 1
    spectrum = torch.fft.fft2(x - x.mean(0), norm="ortho").abs().square().mean((0, 1))
    rows = []
    for bpp in RATES:
        bench, found = Bench(bpp), []
        for power in (0.0, 0.25, 0.5, 1.0):

            def weighted(which: Segment, x0_hat: Tensor, bench: Bench = bench, power: float = power) -> Tensor:
                sigma = bench.step_of(which).sigma
                r = torch.fft.fft2(bench.stream.join(bench.x0 - x0_hat), norm="ortho")
                r = torch.fft.ifft2(r * (spectrum / (spectrum + sigma**2)) ** power, norm="ortho").real
                return bench.select(which, bench.stream.views(r.contiguous()))

            found.append(bench.psnr(weighted))
        rows.append({"bpp": bpp, "psnr": found})
    return rows


def entropy() -> list[dict]:
    """Bits of the halves of 16-bit tokens, by their frequencies, with Miller and Madow's correction."""
    rows = []
    for bpp in RATES:
        bench = Bench(bpp)
        tokens = bench.codec.encode(bench.images)
        halves = {"high": tokens >> 8, "low": tokens & 255}
        row: dict[str, Any] = {"bpp": bpp, "tokens": tokens.numel()}
        for name, values in halves.items():
            p = torch.bincount(values.flatten(), minlength=256).double() / values.numel()
            row[name] = float(-(p[p > 0] * p[p > 0].log2()).sum()) + 255 / (2 * values.numel() * math.log(2))
        rows.append(row)
    return rows


IDEAS: dict[str, Callable[[], list[dict]]] = {
    "turns": turns,
    "coefficients": coefficients,
    "orders": orders,
    "reuse": reuse,
    "ahead": ahead,
    "frequencies": frequencies,
    "entropy": entropy,
}


# ---- the page -----------------------------------------------------------------------------------------------------------
def percent(found: tuple[float, float]) -> str:
    return f"{100 * found[0]:.1f} % ± {100 * found[1]:.1f}"


def share_table(name: str, head: list[str]) -> str:
    lines = []
    for row in page.load(NAME)[name]:
        log = row.get("log_vocab_size", 16)
        lines.append([f"{row['budget']} of 2^{log}", *map(percent, row["share"])])
    return page.table(["tokens of a step", *head], lines)


def psnr_table(name: str, head: list[str]) -> str:
    lines = [
        [f"{row['bpp']:g} bpp" + (f", {row['nfe']} calls" if "nfe" in row else ""), *(f"{p:.2f} dB" for p in row["psnr"])]
        for row in page.load(NAME)[name]
    ]
    return page.table(["", *head], lines)


def entropy_table() -> str:
    lines = [
        [f"{r['bpp']:g} bpp", str(r["tokens"]), f"{r['high']:.3f} bits", f"{r['low']:.3f} bits"]
        for r in page.load(NAME)["entropy"]
    ]
    return page.table(["", "tokens", "high byte", "low byte"], lines)


TABLES: page.Tables = {
    "turns": lambda: share_table("turns", ["at once", "in 4 turns", "in 16 turns", "at once, one pass again"]),
    "coefficients": lambda: share_table("coefficients", ["equal", "best, at no bits", "best, at 2 bits each"]),
    "orders": lambda: share_table("orders", ["order 4096, cut", "order 3072"]),
    "reuse": lambda: psnr_table("reuse", ["24 steps", "48 steps, every x0_hat twice"]),
    "ahead": lambda: psnr_table("ahead", ["1 candidate", "2 candidates", "4 candidates", "8 candidates"]),
    "frequencies": lambda: psnr_table("frequencies", ["a = 0", "a = 1/4", "a = 1/2", "a = 1"]),
    "entropy": entropy_table,
    "source": lambda: page.source(page.load(NAME), NAME),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(IDEAS), action="append", help="measure only this idea (repeatable)")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    path = RESULTS / f"{NAME}.json"
    parts = {k: v for k, v in json.loads(path.read_text()).items() if k in IDEAS} if path.exists() else {}
    about = f"{DRAWS} random residuals of {D} dimensions; {IMAGES} CIFAR-10 test images, {BACKBONE}, {CALLS} calls"
    for name in args.only or IDEAS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            parts[name] = IDEAS[name]()
        print(name, json.dumps(parts[name]), flush=True)
        write(NAME, {"about": about, **parts}, 0)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
