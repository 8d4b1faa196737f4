"""A whole data set against the codec by itself: images a second of `noisebook tokenize` and of batches that lie in memory.

    python -m bench.speed.tokenizing [FILE.json] [--minutes 12] [--dry]
    python -m bench.speed.tokenizing --report      # only write the page; --check: only say whether it is up to date

Both sides in turns in one process, the same images in batches of the same size, `rounds` times after one of warm-up. The
pipeline reads PNG or Parquet, decodes in worker processes, encodes, and commits shards to disk (with fsync); its clock runs
from the first batch that the codec is given to the last ledger entry, and the time before (processes start, the first
pictures are decoded) is shown beside it. A GPU is used where there is one. Without FILE: bench/results/tokenizing.json and
the table of docs/datasets.md. Images: those of $NOISEBOOK_DATA, or smooth random ones, which decode as slowly.
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

import numpy as np
import torch
from torch import Tensor

import noisebook
from bench.lib import page
from bench.lib.cases import CASES, archive, pictures
from bench.lib.images import write_parquet
from bench.lib.record import ROOT, provenance, save, write
from noisebook.codec.codec import Codec
from noisebook.datasets.plan import Plan, PlanSettings
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.store import Store
from noisebook.images.io import png_bytes

NAME, PAGE = "tokenizing", ROOT / "docs/datasets.md"


def prepare(folder: Path, case: dict[str, Any], images: np.ndarray) -> Path:
    if case["input"] == "parquet":
        write_parquet(folder / "in.parquet", images, np.zeros(len(images), int))
        return folder / "in.parquet"
    (folder / "in").mkdir()
    for i, image in enumerate(images):
        (folder / f"in/{i:05d}.png").write_bytes(png_bytes(image))
    return folder / "in"


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
    cuda, batch = device == "cuda", case["batch"][device == "cuda"]
    count = 2 * batch if dry else case["images"][cuda]
    images = pictures(case, count)
    torch.set_num_threads(threads)
    codec = noisebook.load(device=device, **case["codec"])
    given, side = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), images.shape[1]
    speeds: dict[str, list[float]] = {"alone": [], "pipeline": [], "ratio": [], "before": [], "busy": []}
    with tempfile.TemporaryDirectory() as folder:
        source = prepare(Path(folder), case, images)
        for k in range(rounds + 1):
            speed = alone(codec, given, batch)
            made, before, busy = pipeline(
                codec, source, Path(folder) / f"out-{k}", side, batch, workers, max(batch, count // 4)
            )
            if k:  # the first is warm-up
                for name, value in (
                    ("alone", speed),
                    ("pipeline", made),
                    ("ratio", made / speed),
                    ("before", before),
                    ("busy", busy),
                ):
                    speeds[name].append(value)
    return {
        "name": case["name"],
        "input": case["input"],
        "real": archive(case)[1] is not None,
        "images": count,
        "batch": batch,
        "threads": threads,
        "workers": workers,
        "rounds": rounds,
        **{name: statistics.median(values) for name, values in speeds.items()},
        "ratios": [round(r, 4) for r in speeds["ratio"]],
    }


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
    begin, rows, left_out, load = time.monotonic(), [], [], round(os.getloadavg()[0], 1)
    for case in CASES[2:] if options.dry else CASES:
        for threads, workers in ways:
            if time.monotonic() - begin > 60 * options.minutes:
                left_out.append([case["name"], threads])
                continue
            rows.append(row(case, device, threads, workers, 1 if options.dry else options.rounds, options.dry))
            print(
                f"{rows[-1]['name']}: {rows[-1]['pipeline']:.1f} of {rows[-1]['alone']:.1f} images/s, "
                f"{100 * rows[-1]['ratio']:.1f} %",
                flush=True,
            )
    result = {"dry": options.dry, "load": load, "rows": rows, "left_out": left_out}
    if options.file:
        save(options.file, {**provenance(0, device), **result})
    else:
        write(NAME, result, 0, device)
        page.fill(PAGE, TABLES, False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
