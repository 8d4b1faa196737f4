"""A whole data set against the codec alone: images a second of `noisebook tokenize` and of batches that lie in memory.

    python bench/tokenizing.py [FILE.json] [--minutes 12] [--dry]
    python bench/tokenizing.py --check       # only say whether docs/datasets.md follows from the results

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
import report
import torch
from faults_kit import png, smooth
from torch import Tensor
from whole_dataset import write_parquet

import noisebook
from noisebook.codec.codec import Codec
from noisebook.datasets.plan import Plan, PlanSettings
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.store import Store
from record import DATA, ROOT, provenance, save, write

NAME, PAGE = "tokenizing", ROOT / "docs/datasets.md"
FLOW = {
    "backbone": "cifar10-flow",
    "steps": 8,
    "budget": 4,
    "budget_last": 4,
    "vocab_size": 4096,
    "scale_pixels": 0,
    "start_budget": 0,
}
COD = {"backbone": "cifar10-cod", "condition": "only"}
CASES: list[dict[str, Any]] = [  # name, codec, input, images on a CPU and on a GPU, batch there, threads and workers
    {
        "name": "CIFAR-10, `cifar10-flow`, 8 calls",
        "codec": FLOW,
        "input": "parquet",
        "images": (256, 8192),
        "batch": (32, 256),
    },
    {
        "name": "photographs 256 x 256, `photo-low`",
        "codec": {"preset": "photo-low"},
        "input": "pictures",
        "images": (24, 512),
        "batch": (4, 32),
    },
    {
        "name": "CIFAR-10, `cifar10-cod`, one pass of convolutions",
        "codec": COD,
        "input": "parquet",
        "images": (256, 32768),
        "batch": (64, 256),
    },
]


def pictures(case: dict[str, Any], count: int) -> np.ndarray:
    """uint8 [N, H, W, 3], real ones where they are at hand."""
    from noisebook.images.archive import load_npz_images

    side, path = archive(case)
    if path is None:
        rng = np.random.default_rng(0)
        some = np.stack([smooth(rng, side, side) for _ in range(min(count, 256))])
    else:
        some = np.stack([x[:side, :side, :3] for x in load_npz_images(path, count)])
    return some[np.arange(count) % len(some)]


def archive(case: dict[str, Any]) -> tuple[int, Path | None]:
    """(side of the images, where real ones are): the data folder, or what `bench/carry.py` packed."""
    names = ("cifar10_train.npz", "cifar10.npz") if case["input"] == "parquet" else ("photos256.npz",)
    side = 32 if case["input"] == "parquet" else 256
    return side, next((DATA / name for name in names if (DATA / name).exists()), None)


def prepare(folder: Path, case: dict[str, Any], images: np.ndarray) -> Path:
    if case["input"] == "parquet":
        write_parquet(folder / "in.parquet", images, np.zeros(len(images), int))
        return folder / "in.parquet"
    (folder / "in").mkdir()
    for i, image in enumerate(images):
        (folder / f"in/{i:05d}.png").write_bytes(png(image))
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
    result, lines = report.load(NAME), []
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
        "codec alone, images/s",
        "`tokenize`, images/s",
        "ratio",
        "codec at work",
        "before the first batch",
    ]
    about = (
        f"Medians of {result['rows'][0]['rounds']} rounds in turns (least to most). The machine's load average was "
        f"{result['load']:.1f} before, on its {result['cores']} cores; above 100 % shows how far it swings"
    )
    return f"{report.table(head, lines)}\n\n{about}. {report.source(result, NAME)}"


def gpu_table() -> str:
    result = report.measured(f"gpu_{NAME}")
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
    head = ["images, codec", "batch", "workers", "codec alone, images/s", "`tokenize`, images/s", "ratio", "codec at work"]
    return f"{report.table(head, lines)}\n\n{report.source(result, f'gpu_{NAME}')}"


TABLES: dict[str, Callable[[], str]] = {"tokenizing": table, "gpu_tokenizing": gpu_table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=30.0, help="when to stop starting cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU, which prove the script")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        report.fill(PAGE, TABLES, True)
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
        report.fill(PAGE, TABLES, False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
