"""A whole data set against the codec by itself: images a second of `noisebook tokenize` and of batches that lie in memory.

    python -m bench.speed.tokenizing [FILE.json] [--minutes 12] [--dry]
    python -m bench.speed.tokenizing --report      # only write the page; --check: only say whether it is up to date

Both sides in turns in one process, the same images in batches of the same size, `rounds` times after one of warm-up. The
pipeline reads a folder, tars or Parquet, decodes in worker processes, encodes, and commits shards to disk (with fsync); its
clock runs from the first batch that the codec is given to the last ledger entry, and the time before (processes start, the
first pictures are decoded) is shown beside it. Where there is a GPU, the cases are those whose share of the codec's own
speed is to be reached there (bench/lib/cases.py). Without FILE: bench/results/tokenizing.json and the table of
docs/datasets.md; FILE is whole after each case. Images: those of $NOISEBOOK_DATA, or smooth random ones, which decode as
slowly.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noisebook
from bench.lib import page
from bench.lib.cases import CASES, COD, GPU_CASES, archive, pictures, prepare
from bench.lib.record import ROOT, provenance, save, write
from noisebook.codec.codec import Codec
from noisebook.datasets.plan import Plan, PlanSettings
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.store import Store

NAME, PAGE = "tokenizing", ROOT / "docs/datasets.md"


def alone(codec: Codec, images: Tensor, batch: int) -> float:
    """Images a second of the codec, given batches that lie in memory; tokens end on the host, as a shard needs them."""
    begin = time.perf_counter()
    for first in range(0, len(images), batch):
        codec.encode(images[first : first + batch]).cpu().numpy()
    return len(images) / (time.perf_counter() - begin)


class Clock:
    """When the codec was given the first batch, and how long it was at work in all."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.busy = 0.0

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        if event == "batch":
            self.busy += fields["seconds"]
            if self.first is None:
                self.first = time.perf_counter() - fields["seconds"]


def pipeline(
    codec: Codec, source: Path, output: Path, side: int, batch: int, workers: int, shard: int
) -> tuple[float, float, float]:
    """(images a second from the first batch on, seconds before it, share of the time from then on in which the codec is at
    work) of a data set made anew."""
    begin, clock, store = time.perf_counter(), Clock(), Store(output)
    plan = Plan(enumerate_inputs([str(source)]), PlanSettings(codec.spec, shard, batch, 0, (side, side)))
    plan.save(store)
    tokenizer = Tokenizer(plan, codec, store, workers, tell=clock)
    tokenizer.run(range(plan.shards))
    assert clock.first is not None
    seconds = time.perf_counter() - clock.first
    return len(plan.source.items) / seconds, clock.first - begin, clock.busy / seconds


def row(case: dict[str, Any], device: str, threads: int, workers: int, rounds: int, dry: bool) -> dict[str, Any]:
    batch, count = case["batch"], 2 * case["batch"] if dry else case["images"]
    torch.set_num_threads(threads)
    codec = noisebook.load(device=device, **case["codec"])
    given, side = torch.from_numpy(pictures(case, count)).permute(0, 3, 1, 2).contiguous(), case["side"]
    shard = max(batch, count // (16 if device == "cuda" else 4))  # the last one is written while no codec works
    speeds: dict[str, list[float]] = {"alone": [], "pipeline": [], "ratio": [], "before": [], "busy": []}
    with tempfile.TemporaryDirectory() as folder:
        source = prepare(Path(folder), case, count, [case["input"]])[case["input"]]
        for k in range(rounds + 1):
            speed = alone(codec, given, batch)
            made, before, busy = pipeline(codec, source, Path(folder) / f"out-{k}", side, batch, workers, shard)
            if k:  # the first is warm-up
                for name, value in zip(speeds, (speed, made, made / speed, before, busy), strict=True):
                    speeds[name].append(value)
    return {
        **{key: case[key] for key in ("name", "input", "batch", "least") if key in case},
        "real": archive(case) is not None,
        "images": count,
        "threads": threads,
        "workers": workers,
        "rounds": rounds,
        **{name: statistics.median(values) for name, values in speeds.items()},
        "ratios": [round(r, 4) for r in speeds["ratio"]],
    }


def dry_cases() -> list[dict[str, Any]]:
    """The cases of a GPU with the fastest codec, on a few small pictures."""
    return [{**case, "codec": COD, "side": 32, "batch": 8} for case in GPU_CASES]


def table() -> str:
    result, lines = page.load(NAME), []
    for r in result["rows"]:
        spread = f"({100 * min(r['ratios']):.0f} to {100 * max(r['ratios']):.0f})"
        lines.append(
            [
                r["name"],
                str(r["batch"]),
                f"{r['threads']} + {r['workers']}",
                f"{r['alone']:.1f}",
                f"{r['pipeline']:.1f}",
                f"{100 * r['ratio']:.1f} % {spread}",
                f"{100 * r['busy']:.1f} %",
                f"{r['before']:.1f} s",
            ]
        )
    head = [
        "images, codec",
        "batch",
        "codec's threads + workers",
        "codec by itself, images/s",
        "`tokenize`, images/s",
        "ratio",
        "codec at work",
        "before the first batch",
    ]
    about = (
        f"Medians of {result['rows'][0]['rounds']} rounds in turns (least to most). The machine's load average was "
        f"{result['load']:.1f} before, on its {result['cores']} cores; above 100 % shows how far it swings"
    )
    return f"{page.table(head, lines)}\n\n{about}. {page.source(result, NAME)}"


def gpu_table() -> str:
    result = page.measured(f"gpu_{NAME}")
    if result is None:
        return "Not measured on a GPU yet (`bash bench/gpu.sh tokenizing`)."
    lines = [
        [
            r["name"],
            r["input"],
            str(r["batch"]),
            str(r["workers"]),
            f"{r['alone']:.0f}",
            f"{r['pipeline']:.0f}",
            f"{100 * r['ratio']:.1f} %",
            f"{100 * r['busy']:.1f} %",
        ]
        for r in result["rows"]
    ]
    head = [
        "images, codec",
        "input",
        "batch",
        "workers",
        "codec by itself, images/s",
        "`tokenize`, images/s",
        "ratio",
        "codec at work",
    ]
    return f"{page.table(head, lines)}\n\n{page.source(result, f'gpu_{NAME}')}"


TABLES: dict[str, Callable[[], str]] = {"tokenizing": table, "gpu_tokenizing": gpu_table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=30.0, help="when to stop starting cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU, which prove the script")
    page.add_options(parser)
    options = parser.parse_args()
    if page.only_page(options, PAGE, TABLES):
        return 0
    device = "cuda" if torch.cuda.is_available() and not options.dry else "cpu"
    ways = [(torch.get_num_threads(), 8)] if device == "cuda" else [(1, 1)] if options.dry else [(1, 1), (2, 1)]
    cases = dry_cases() if options.dry else GPU_CASES if device == "cuda" else CASES
    begin, load, took = time.monotonic(), round(os.getloadavg()[0], 1), 0.0
    todo = [(case, *way) for case in cases for way in ways]
    rows, left_out = [], []
    for case, threads, workers in todo:
        started = time.monotonic()
        if started - begin + took > 60 * options.minutes:  # as long as the one before took
            left_out.append([case["name"], case["input"], threads])
            continue
        rows.append(row(case, device, threads, workers, 1 if options.dry else options.rounds, options.dry))
        took = time.monotonic() - started
        r = rows[-1]
        print(
            f"{r['name']}, {r['input']}: {r['pipeline']:.1f} of {r['alone']:.1f} images/s, {100 * r['ratio']:.1f} %",
            flush=True,
        )
        if options.file:
            rest = [[case["name"], case["input"], threads] for case, threads, _ in todo[len(rows) + len(left_out) :]]
            result = {"dry": options.dry, "load": load, "rows": rows, "left_out": [*left_out, *rest]}
            save(options.file, {**provenance(0, device), **result})
    if not options.file:
        write(NAME, {"dry": options.dry, "load": load, "rows": rows, "left_out": left_out}, 0, device)
        page.fill(PAGE, TABLES, False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
