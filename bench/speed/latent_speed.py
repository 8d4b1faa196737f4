"""What a user of Stable Diffusion, SDXL, SD3 or Flux waits for: python -m bench.speed.latent_speed FILE.json

Random weights of the published sizes, made on the device. Encode and decode under every rule, for batches of 1, 8 and 32,
with and without `compile`; beside them in the same run the bare network and the autoencoder, each in one CUDA graph, and
the plain loops of Turbo-DDCM and DiffC (bench/lib/loops.py). Each row says images per second, the share of its time outside
network and autoencoder (both run as this row runs them), and the most memory that it needs, weights included.

The most important rows come first. What --minutes leave no time for is named in `left_out`. What fails is a row with its
`error`, and the exit code is 1 then. Without a GPU, or with --dry: tiny sizes on the CPU, which prove the script and
measure nothing.
"""

import argparse
import gc
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__" and ("--dry" in sys.argv or not torch.cuda.is_available()):
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, which the imports below do

import noisebook
from bench.lib import page
from bench.lib.latents import SIZES, TINY_SIDE, compile_whole, network_calls
from bench.lib.loops import DiffCLoop, TurboLoop
from bench.lib.record import provenance, save
from bench.lib.timing import Clock, Graphed
from bench.speed.latent_speed_page import PAGE, TABLES
from noisebook.backbones.wrappers.latent import Latent
from noisebook.codec.codec import Codec
from noisebook.errors import first_line

BITS = 1378  # of one step in the loops: M = 150 of 16,384 atoms, 19 steps are .1 bits per pixel of 512 x 512
OURS: dict[str, dict[str, Any]] = {  # the rules as users run them; `top` and `poisson` carry as many bits as the loops
    "bins": {"budget": 64, "vocab_size": 65536},
    "bins, effort 0": {"budget": 64, "vocab_size": 65536, "effort": 0},
    "top": {"rule": "top", "budget": 150, "vocab_size": 32768},
    "poisson": {"rule": "poisson", "budget": BITS, "vocab_size": 1 << 17},
    "pursuit": {"rule": "pursuit", "budget": 8, "vocab_size": 65536, "coefficient_bits": 3, "rows": 2, "columns": 4},
}
DRY: dict[str, dict[str, Any]] = {  # what differs at tiny sizes
    "bins": {"budget": 4, "vocab_size": 256},
    "bins, effort 0": {"budget": 4, "vocab_size": 256},
    "top": {"budget": 5, "vocab_size": 64},
    "poisson": {"budget": 12, "vocab_size": 128},
    "pursuit": {"budget": 2, "vocab_size": 64, "rows": 1, "columns": 2},
}
LOOPS = ("Turbo-DDCM's loop", "DiffC's loop")
STEPS = 19


@dataclass(frozen=True)
class Case:
    """One way to run one model. `way` is a rule of OURS or one of LOOPS; `graph`: recorded, as our codec does by default;
    `whole`: the network compiled in one piece, not block by block as ours is; `channels_last`: of ours, which a loop is
    where it is compiled."""

    size: str
    way: str
    batch: int
    compile: bool = False
    graph: bool = True
    whole: bool = False
    channels_last: bool = True

    @property
    def name(self) -> str:
        how = ("compile whole, " if self.whole else "compile, " if self.compile else "") + (
            "graph" if self.graph else "eager"
        )
        how += "" if self.channels_last else ", contiguous"
        return f"{self.size}, {self.way}, {how}, B={self.batch}"


def plan() -> list[Case]:
    """All cases, those that the issue's lines ask for first."""
    sd, loop, diffc = "SD 2.1", *LOOPS
    first = [
        Case(sd, "bins", 1),
        Case(sd, "top", 1),
        Case(sd, "top", 1, graph=False),
        Case(sd, "top", 1, graph=False, channels_last=False),
        Case(sd, loop, 1, graph=False),
        Case(sd, diffc, 1, graph=False),
        Case(sd, "poisson", 1),
        Case(sd, "bins", 32, compile=True),  # before other batches: torch compiles the second size for any size
        Case(sd, "bins", 1, compile=True),
        Case(sd, "poisson", 32, compile=True),
        Case(sd, "top", 32, compile=True),
        Case(sd, loop, 32, compile=True, whole=True),
        Case(sd, "bins", 32, compile=True, whole=True),
        Case(sd, "bins", 32),
        Case(sd, "bins", 8, compile=True),
        Case(sd, "bins", 8),
        Case(sd, "bins", 1, graph=False),
        Case(sd, "pursuit", 1),
        Case(sd, "bins, effort 0", 1),
        Case(sd, loop, 1, compile=True, whole=True),
    ]
    first += [Case(size, "bins", batch) for size in ("SDXL", "SD3-medium", "Flux-dev") for batch in (1, 8)]
    rest = [Case(sd, way, batch, compile) for way in OURS for batch in (1, 8, 32) for compile in (False, True)]
    rest += [Case(size, "bins", batch, True) for size in ("SDXL", "SD3-medium", "Flux-dev") for batch in (1, 8)]
    return [*first, *(case for case in rest if case not in first)]


def dry_plan() -> list[Case]:
    """Each way once, each size once."""
    ways = [Case("SD 2.1", way, 2 if way == "bins" else 1, graph=way not in LOOPS) for way in (*OURS, *LOOPS)]
    return [*ways, *(Case(size, "bins", 1) for size in SIZES if size != "SD 2.1")]


class Bench:
    """Runs cases on one device. Models stay while the next case needs the same one."""

    def __init__(self, device: torch.device, dry: bool):
        self.device, self.dry, self.cuda = device, dry, device.type == "cuda"
        self.clock = Clock(device, (2, 30))
        self.steps, self.seconds = (2, 0.0) if dry else (STEPS, 1.0)
        self.models: dict[tuple, Latent] = {}
        self.alone: dict[tuple, dict[str, dict[str, Any]]] = {}
        self.first_calls: dict[Case, float] = {}  # seconds of the first network calls, in which code is compiled

    # ---- models and parts ----------------------------------------------------------------------------------------------
    def side(self, size: str) -> int:
        return TINY_SIDE if self.dry else SIZES[size].side

    def model(self, case: Case) -> Latent:
        size, key = case.size, (case.size, case.compile, case.whole, case.channels_last)
        if key not in self.models:
            if any(other != size for other, *_ in self.models):
                self.models.clear()
                self.release()
            made = SIZES[size].build(self.device, self.dry)
            how = ("bfloat16", case.channels_last, case.compile and not case.whole)
            self.models[key] = made.accelerate(*how)  # type: ignore[assignment]
            if case.whole:
                compile_whole(made)
        return self.models[key]

    def release(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def time(self, call: Callable[[int], Any], graph: bool = False) -> dict[str, Any]:
        """Times of a call, in one graph where asked for; once before, so that it is compiled."""
        call(0)
        recorded = Graphed(call, 1) if graph and self.cuda else None
        return self.clock.time(recorded.run if recorded else call, 1, seconds=self.seconds)

    @torch.no_grad()
    def parts(self, key: tuple, backbone: Latent, levels: list[float], case: Case) -> dict[str, dict[str, Any]]:
        """Times of the bare network, called as often as an encode and as a decode does, and of the autoencoder's halves."""
        key = (*key, case.size, case.batch, case.compile, case.whole, case.channels_last, case.graph)
        if key not in self.alone:
            side, state = self.side(case.size), backbone.state_shape(self.side(case.size), self.side(case.size))
            dtype = next(backbone.inner.parameters()).dtype if key[0] == "loop" else torch.float32
            images = torch.rand(case.batch, 3, side, side, device=self.device).to(dtype) * 2 - 1
            codes = torch.randn(case.batch, *state, device=self.device, dtype=dtype)
            begin, calls = time.perf_counter(), {}
            for verb, at in (("encode", levels[:-1]), ("decode", levels)):
                calls[verb] = network_calls(backbone, at, case.batch, side)
            self.clock.sync()
            self.first_calls[case] = time.perf_counter() - begin
            network = {verb: self.time(call, case.graph) for verb, call in calls.items()}
            halves = {"encode": lambda _: backbone.encode(images), "decode": lambda _: backbone.decode(codes)}
            self.alone[key] = {
                verb: {"network": network[verb], "autoencoder": self.time(half, case.graph)} for verb, half in halves.items()
            }
            self.release()
        return self.alone[key]

    # ---- rows -----------------------------------------------------------------------------------------------------------
    def images(self, case: Case) -> torch.Tensor:
        side = self.side(case.size)
        return torch.randint(0, 256, (case.batch, 3, side, side), dtype=torch.uint8, device=self.device)

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """The rows encode and decode of one case."""
        return self.loop_rows(case) if case.way in LOOPS else self.our_rows(case)

    def schedule(self, backbone: Latent, **options: Any) -> Codec:
        """A codec on the levels that all rows share."""
        shape = {"steps": self.steps, "scale_pixels": 0, "start_budget": 0, "sigma_max": 14.0, "sigma_min": 0.05}
        return noisebook.load(backbone=backbone, **shape, **options)

    def our_rows(self, case: Case) -> list[dict[str, Any]]:
        backbone, images = self.model(case), self.images(case)
        options = {**OURS[case.way], **(DRY[case.way] if self.dry else {})}
        codec = self.schedule(backbone, graphs=case.graph, budget_last=options["budget"], **options)
        levels = [step.sigma for step in codec.spec.schedule]
        parts = self.parts(("ours",), backbone, [*levels, codec.spec.sigma_last], case)
        rows = [self.row(case, "encode", lambda _: codec.encode(images), parts, backbone, codec)]
        tokens, size = codec.encode(images), (images.shape[2], images.shape[3])
        return [*rows, self.row(case, "decode", lambda _: codec.decode(tokens, size), parts, backbone, codec)]

    def loop_rows(self, case: Case) -> list[dict[str, Any]]:
        """A loop has a model of its own, because it is cast to half precision: compiled, channels last and recorded where
        the case says so, and as published otherwise."""
        backbone, images = SIZES[case.size].build(self.device, self.dry), self.images(case)
        dtype = torch.float16 if self.cuda else torch.bfloat16
        turbo = case.way == LOOPS[0]
        steps = self.schedule(backbone, budget=1, budget_last=1).spec.schedule
        loop = (TurboLoop if turbo else DiffCLoop)(backbone, steps, dtype, channels_last=case.compile)
        if self.dry:
            vars(loop).update(codewords=64, atoms=5, bits=12, chunk=6)
        if case.compile:
            compile_whole(backbone)
        parts = self.parts(("loop",), backbone, loop.levels, case)
        options: dict[str, Any] = {"recorded": case.graph and self.cuda} if turbo else {}
        rows = [self.row(case, "encode", lambda _: loop.encode(images, **options), parts, backbone)]
        with torch.no_grad():
            tokens: Any = loop.encode(images, **options)
        state = backbone.state_shape(images.shape[2], images.shape[3])
        options |= {} if turbo else {"device": self.device}
        return [*rows, self.row(case, "decode", lambda _: loop.decode(tokens, state, **options), parts, backbone)]

    @torch.no_grad()
    def row(
        self,
        case: Case,
        verb: str,
        call: Callable[[int], Any],
        parts: dict[str, dict[str, Any]],
        backbone: Latent,
        codec: Codec | None = None,
    ) -> dict[str, Any]:
        """One row; a codec records its own graph, a loop is recorded here."""
        before = 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            total = self.time(call, graph=case.graph and codec is None)
        weights = sum(t.numel() * t.element_size() for t in (*backbone.parameters(), *backbone.buffers()))
        peak = torch.cuda.max_memory_allocated(self.device) - before + weights if self.cuda else None
        inside = sum(part["median_ms"] for part in parts[verb].values())
        row: dict[str, Any] = {
            **describe(case, verb),
            "side": self.side(case.size),
            "calls": self.steps + (verb == "decode"),
            "recorded": case.graph and self.cuda and (codec is None or len(codec.graphs) > 0),
            "times": {"total": total, **parts[verb]},
            "ms_an_image": total["median_ms"] / case.batch,
            "images_per_s": 1e3 * case.batch / total["median_ms"],
            "share_outside": 1 - inside / total["median_ms"],
            "times_of_parts": total["median_ms"] / inside,
            "peak_gib": peak and peak / 2**30,
        }
        if case in self.first_calls:  # of the first case on a model and a batch
            row["first_network_calls_s"] = self.first_calls[case]
        if heard:
            row["warnings"] = sorted({str(warning.message).strip()[:300] for warning in heard})[:5]
        return row


def describe(case: Case, verb: str | None = None) -> dict[str, Any]:
    """What names a row: its case, and the verb."""
    name = f"{verb}, {case.name}" if verb else case.name
    return {"name": name, "verb": verb, **vars(case)}


def show(row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"FAILED {row['name']}: {row['error']}", file=sys.stderr, flush=True)
        return
    memory = "" if row["peak_gib"] is None else f"  {row['peak_gib']:5.1f} GiB"
    print(
        f"{row['name']:62s} {row['ms_an_image']:9.1f} ms per image {row['images_per_s']:7.2f} images/s  outside "
        f"{100 * row['share_outside']:5.1f} %{memory}",
        flush=True,
    )
    for warning in row.get("warnings", ()):
        print(f"    warning: {warning}", file=sys.stderr, flush=True)


def expected(case: Case, took: dict[tuple, float], rows: list[dict[str, Any]]) -> float:
    """Seconds that a case may take: as the last like it did, and as its images did one by one, six times over."""
    kind = (case.size, case.batch, case.compile, case.whole)
    alike = took.get(kind, took.get(kind[:2], 15.0))
    same = [r for r in rows if "error" not in r and (r["size"], r["way"], r["batch"]) == (case.size, case.way, 1)]
    each = {verb: min((r["ms_an_image"] for r in same if r["verb"] == verb), default=0.0) for verb in ("encode", "decode")}
    return max(alike, 3e-3 * case.batch * sum(each.values()))  # a batch takes at most half as long an image


def measure(cases: list[Case], bench: Bench, minutes: float, file: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Runs the cases; the file is whole after each, and names those that were left out so far."""
    begin, took, rows, skipped = time.monotonic(), {}, [], []
    result: dict[str, Any] = about
    for i, case in enumerate(cases):
        if time.monotonic() - begin + expected(case, took, rows) > 60 * minutes:
            skipped.append(case.name)
        else:
            started = time.monotonic()
            try:
                found = bench.rows(case)
            except Exception as error:
                traceback.print_exc()
                found = [{**describe(case), "error": f"{type(error).__name__}: {first_line(error)}"[:500]}]
            bench.release()
            kind = (case.size, case.batch, case.compile, case.whole)
            took[kind] = took[kind[:2]] = time.monotonic() - started
            rows += found
            for row in found:
                show(row)
        result = {**about, "rows": rows, "left_out": [*skipped, *(later.name for later in cases[i + 1 :])]}
        save(file, result)
    for name in skipped:
        print(f"left out, no time: {name}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=5.0, help="when to stop starting cases")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, which prove the script")
    page.add_options(parser)
    options = parser.parse_args()
    if page.only_page(options, PAGE, TABLES):
        return 0
    if options.file is None:
        parser.error("give the result file")
    cuda = torch.cuda.is_available() and not options.dry
    if cuda:  # all models share their wrappers' code; beyond its limit torch would go on without compiling, and say nothing
        torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined]
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # type: ignore[attr-defined]
    bench = Bench(torch.device("cuda" if cuda else "cpu"), not cuda)
    about = {
        **provenance(0, bench.device.type),
        "dry": not cuda,
        "about": "medians and quartiles in ms of whole batches; ours in bfloat16, channels last; the loops in half "
        "precision. The network by itself is called as often, on inputs of the same kind, in the same mode",
    }
    result = measure(plan() if cuda else dry_plan(), bench, options.minutes, options.file, about)
    return 1 if not result["rows"] or any("error" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
