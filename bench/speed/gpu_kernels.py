"""Times every Triton kernel, and the baselines, beside computed floors: python -m bench.speed.gpu_kernels FILE.json

Values are checked first, on fresh random inputs against the definition: what fails is not timed. Each kernel is timed as
a plain call and replayed in a CUDA graph (bench/lib/timing.py says how). Rows come in order of value; what --minutes does
not hold stands under `left_out`. --dry: tiny sizes in Triton's interpreter, for a machine without a GPU.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import torch
from torch import Tensor

from bench.lib import baselines, floors
from bench.lib.kernels import KEEP, SEED, SIGMA_UP, STEP, Case, arguments, drawn, fresh, prepare
from bench.lib.record import provenance, save
from bench.lib.timing import Clock, copies_of, measure
from noisebook.codebook import Codebook, reference, refining

CODEBOOKS = floors.CODEBOOKS
DRAWN = (("bias", "arrival"), ("places", "chunk"))  # what rule `poisson` draws beside codewords
CHUNKS = 99  # of a step of 1,378 bits at most 2^16 values an index: .1 bits per pixel of 512 x 512 in 19 steps
SLACK = {"hadamard": 1e-5, "independent": 0.06}  # of the best score over |r|: float32 sums; int8 scores


def cases(dry: bool) -> Iterator[Case]:
    """In order of value; each once. The searches that the baselines are compared with come first."""
    if dry:
        for kernel in ("select", "backtrace", "noise", "top", "biased"):
            yield from (Case(kernel, codebook, 20, 1 << 6, 2, 2 if kernel == "top" else 1) for codebook in CODEBOOKS)
        yield Case("select", "hadamard", 40, 1 << 8, 1, 4)
        yield from (Case(*name, 20, 1 << 6, 1, 3) for name in DRAWN)
        yield from (Case(kernel, "hadamard", d, 1 << 6, 1, 4) for d in (16, 20) for kernel in ("refined", "chain"))
        return
    d, k, ends = floors.SIZES[0], 1 << 20, (256, 1)
    for codebook in CODEBOOKS:
        yield from (Case("select", codebook, d, k, b) for b in (256, 64, 16, 1024, 1))
    yield Case("select", "hadamard", d, 1 << 30, 1)
    for kernel in ("backtrace", "noise"):
        yield from (Case(kernel, codebook, d, k, b) for codebook in CODEBOOKS for b in ends)
    for kernel, bins in (("top", 64), ("biased", 1)):
        yield from (Case(kernel, codebook, d, k, b, bins) for codebook in CODEBOOKS for b in ends)
    yield from (Case(*name, floors.SIZES[1], 1 << 16, 1, CHUNKS) for name in DRAWN)
    for b in (1, 32):  # a step of latents: 64 tokens of 2^16; `chain` is the same in plain torch
        yield from (Case(kernel, "hadamard", 16384, 1 << 21, b, 64) for kernel in ("refined", "chain"))
    for kernel in ("select", "backtrace"):
        yield from (Case(kernel, codebook, d, k, 256, bins) for codebook in CODEBOOKS for bins in (64, 1024))
    for d in floors.SIZES[1:]:
        for codebook in CODEBOOKS:
            yield from (Case("select", codebook, d, k, b) for b in floors.BATCHES)
            yield from (Case("backtrace", codebook, d, k, b, bins) for b in ends for bins in (1, 64))


# ---- values -----------------------------------------------------------------------------------------------------------
def check(case: Case, device: torch.device) -> None:
    """AssertionError unless the kernel of `case` agrees with the definition on a fresh random sample, smaller in K and B."""
    if case.codebook in ("arrival", "chunk"):
        check_drawn(case, device)
        return
    bins = 1 if case.kernel == "biased" else 4
    p = floors.padded(case.d)
    most = case.codewords if case.codebook == "hadamard" else max(16, min(1 << 10, (1 << 24) // p))
    small = Case(case.kernel, case.codebook, case.d, min(case.codewords, most), 2, bins)
    r = torch.randn(2, 1, case.d)
    if case.kernel in ("noise", "backtrace"):
        check_synthesis(small, r, device)
        return
    if case.kernel in ("refined", "chain"):
        check_refined(small, r, device)
        return
    inputs, rest = arguments(small, r.to(device), device)
    tokens = small.function(inputs, *rest, STEP, SEED).cpu()[:, 0]
    scores = getattr(reference, f"{case.codebook}_scores")
    if case.codebook == "hadamard":  # [B, J, P] -> [B, bins, J A]
        atoms = small.shape[1]
        scores = scores(r[:, 0], small.shape[2], STEP, SEED).unflatten(-1, (small.shape[0], -1))[..., :atoms]
        scores = scores.transpose(1, 2).flatten(2)
    else:
        scores = scores(r[:, 0], small.shape[0] * small.shape[1], STEP, SEED).unflatten(-1, small.shape[:2])
    if case.kernel == "biased":
        scores = scores[:, 0] + rest[0].cpu().double()
        assert not (tokens & 1).any(), "a biased token is unsigned"
        picked, best = scores.gather(-1, tokens >> 1), scores.amax(-1, keepdim=True)
    elif case.kernel == "top":
        scores = scores[:, 0]
        assert all(len(set(t)) == bins for t in (tokens >> 1).tolist()), "an atom was chosen twice"
        picked = scores.gather(-1, tokens >> 1) * (1 - 2 * (tokens & 1))
        best = scores.abs().topk(bins)[0]
    else:
        picked = scores.gather(-1, (tokens >> 1)[..., None])[..., 0] * (1 - 2 * (tokens & 1))
        best = scores.abs().amax(-1)
    short = ((best - picked) / r[:, 0].double().norm(dim=-1, keepdim=True)).max().item()
    assert short <= SLACK[case.codebook], f"{small.name}: picked scores fall short of the best by {short:.2g} |r|"


def check_refined(small: Case, r: Tensor, device: torch.device) -> None:
    """Each part's tokens are the best for what the others leave, as `refining` says, in float64."""
    inputs, (given, parts, *_) = arguments(small, r.to(device), device)
    bins, atoms, bases = shape = Codebook("hadamard", 2 * small.codewords // small.bins, SEED).shape(small.bins, small.d)
    chosen = small.function(inputs, given, parts, *shape, STEP, SEED).cpu()[:, 0]
    state, residual = given.cpu()[:, 0].clone(), r[:, 0].double()
    pool = refining.pooled("hadamard", shape, floors.padded(small.d))
    for part in range(parts):
        stay = refining.places(state, shape, pool)[:, torch.arange(bins) % parts != part]
        total = reference.hadamard_total(state, small.d, *shape, STEP, SEED).double()
        rest = reference.hadamard_total(stay, small.d, *pool, STEP, SEED).double()
        cosine = torch.nn.functional.cosine_similarity(total, residual, dim=-1)[:, None] * residual.norm(
            dim=-1, keepdim=True
        )
        missing = residual - (1 - 1 / parts) ** 0.5 * cosine * rest / rest.norm(dim=-1, keepdim=True)
        scores = reference.hadamard_scores(missing, bases, STEP, SEED).unflatten(-1, (bins, -1))[..., :atoms]
        scores = scores.transpose(1, 2).flatten(2)[:, part::parts]
        got = state[:, part::parts] = chosen[:, part::parts]
        picked = scores.gather(-1, (got >> 1)[..., None])[..., 0] * (1 - 2 * (got & 1))
        short = ((scores.abs().amax(-1) - picked) / missing.norm(dim=-1, keepdim=True)).max().item()
        assert short <= SLACK["hadamard"], f"{small.name}: picked scores fall short of the best by {short:.2g} |missing|"


def check_synthesis(small: Case, y: Tensor, device: torch.device) -> None:
    """`noise` and `backtrace` make the same bits as the definition in plain torch."""
    choices = 2 * small.codewords // small.bins
    tokens = torch.randint(0, choices, (2, 1, small.bins))
    total = getattr(reference, f"{small.codebook}_total")(tokens[:, 0], small.d, *small.shape, STEP, SEED)
    want = reference.unit_rms(total)[:, None]
    if small.kernel == "noise":
        got = small.function(tokens.to(device), small.d, *small.shape, STEP, SEED)
    else:
        x0 = torch.randn_like(y)
        got = small.function(y.to(device), x0.to(device), tokens.to(device), KEEP, SIGMA_UP, *small.shape, STEP, SEED)
        want = (x0 + KEEP * (y - x0)) + SIGMA_UP * want
    assert torch.equal(got.cpu(), want), f"{small.name}: other values than the definition"


def check_drawn(case: Case, device: torch.device) -> None:
    """Three chunks of what rule `poisson` draws, against the definition."""
    small = Case(case.kernel, case.codebook, case.d, case.codewords, 1, 3)
    cpu = torch.device("cpu")
    got = [x.cpu() for x in drawn(small, STEP, device)]
    if small.codebook == "chunk":
        want = reference.chunk_places(small.d, small.bins, STEP, SEED, cpu)
        assert all(torch.equal(mine, right) for mine, right in zip(got, want, strict=True)), f"{small.name}: other places"
        return
    want = reference.arrival_bias((small.codewords,) * small.bins, STEP, SEED, cpu)
    assert torch.allclose(got[0], want, rtol=1e-6, atol=1e-6), f"{small.name}: other times than the definition"


# ---- time -------------------------------------------------------------------------------------------------------------
def row(case: Case, clock: Clock) -> dict[str, Any]:
    call, copies = prepare(case, clock.device)
    clock.sync()
    begin = time.perf_counter()
    call(0)
    clock.sync()
    first = time.perf_counter() - begin
    result = measure(clock, call, copies)
    binds, floor, bounds = case.floor
    times = result["times"]
    rotated = case.batch * floors.padded(case.d) * 4 / 2**20
    workspace = None if result["peak_mib"] is None else max(0.0, result["peak_mib"] - rotated)
    return {
        "name": case.name,
        "kernel": case.kernel,
        "codebook": case.codebook,
        "d": case.d,
        "p": floors.padded(case.d),
        "codewords": case.codewords,
        "batch": case.batch,
        "bins": case.bins,
        **result,
        "first_call_ms": 1e3 * first,
        "rotated_mib": rotated,
        "workspace_mib": workspace,
        "floors_ms": bounds,
        "binds": binds,
        "floor_ms": floor,
        "ratio": times["graph"]["median_ms"] / floor if clock.cuda else None,
    }


@dataclass(frozen=True)
class Baseline:
    """A published way: `call` makes its codebook anew and searches it for residuals [batch, D]."""

    kind: str
    d: int
    codewords: int
    batch: int
    call: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        return f"{self.kind} D={self.d} K=2^{self.codewords.bit_length() - 1} B={self.batch}"


def baseline_list(dry: bool) -> Iterator[Baseline]:
    """The per-image codes on one image; `chunked` on a batch; arrival times by torch's own generator, for any batch."""
    d, k, batch, atoms = (48, 1 << 8, 2, 2) if dry else (3072, 1 << 20, 64, 64)
    for variant in baselines.CHUNKED:
        yield Baseline(f"chunked {variant}", d, k, batch, lambda r, v=variant: baselines.chunked(r, k, 1, v))
    for dtype in (torch.float32, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        yield Baseline(f"DDCM {kind}", d, k, 1, lambda r, t=dtype: baselines.materialised(r, k, 1, dtype=t))
        turbo = f"Turbo-DDCM {kind} M={atoms}"
        yield Baseline(turbo, d, k, 1, lambda r, t=dtype: baselines.materialised(r, k, 1, atoms, t))
    yield Baseline("DiffC", d, k, 1, lambda r: baselines.per_candidate(r, k, 1))
    values, chunks = (1 << 6, 3) if dry else (1 << 16, CHUNKS)
    d = 20 if dry else floors.SIZES[1]
    yield Baseline("arrival", d, values, 1, lambda r: baselines.arrival_bias(values, 1, r.device, chunks).float())


def baseline_row(baseline: Baseline, clock: Clock) -> dict[str, Any]:
    residuals = copies_of((baseline.batch, baseline.d), clock.device, fresh(clock.device))
    times = {"plain": clock.time(lambda i: baseline.call(residuals[i]), len(residuals), seconds=1.0)}
    return {
        "name": baseline.name,
        "kind": baseline.kind,
        "d": baseline.d,
        "codewords": baseline.codewords,
        "batch": baseline.batch,
        "times": times,
        "per_image_ms": times["plain"]["median_ms"] / baseline.batch,
    }


def plan(dry: bool) -> list[Case | Baseline]:
    """All rows; the baselines come right after the searches they are compared with."""
    rows: list[Case | Baseline] = list(cases(dry))
    first = next(i for i, case in enumerate(rows) if isinstance(case, Case) and case.kernel != "select")
    rows[first:first] = baseline_list(dry)
    return rows


def attempt(result: dict[str, Any], name: str, work: Callable[[], Any]) -> bool:
    """Runs `work`; an exception is printed and recorded under `failed`, and the others go on."""
    try:
        work()
        return True
    except Exception as error:
        traceback.print_exc()
        result["failed"].append({"name": name, "error": f"{type(error).__name__}: {error}"[:500]})
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=10.0, help="when to stop starting rows")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    deadline = time.monotonic() + 0.9 * 60 * options.minutes
    device = torch.device("cpu" if options.dry else "cuda")
    clock = Clock(device, (2, 2)) if options.dry else Clock(device)
    result: dict[str, Any] = {
        **provenance(None, device.type),
        "dry": options.dry,
        "about": "Medians and quartiles in ms; floors are computed (bench/lib/floors.py); ratio: graph median over floor",
        "rows": [],
        "baselines": [],
        "checked": [],
        "left_out": [],
        "failed": [],
    }
    passed: dict[tuple[str, str, int], bool] = {}

    def add(case: Case) -> None:
        key = (case.kernel, case.codebook, case.d)
        if key not in passed:
            passed[key] = attempt(result, f"check {case.name}", lambda: check(case, device))
            result["checked"].append({"kernel": f"{case.codebook}_{case.kernel}", "d": case.d, "ok": passed[key]})
        if passed[key]:
            attempt(result, case.name, lambda: result["rows"].append(row(case, clock)))

    for one in plan(options.dry):
        print(one.name, flush=True)
        floor = one.floor[1] if isinstance(one, Case) else 0.0
        if time.monotonic() + 40e-3 * floor > deadline:  # some twenty calls, at twice the floor
            result["left_out"].append(one.name)
        elif isinstance(one, Case):
            add(one)
        else:
            attempt(result, one.name, lambda b=one: result["baselines"].append(baseline_row(b, clock)))
        if clock.cuda:
            torch.cuda.empty_cache()
        save(options.file, result)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
