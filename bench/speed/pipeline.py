"""What `noisebook tokenize` does beside the codec: images per second with a stub in its place, and CPU time per stage.

    python -m bench.speed.pipeline [FILE.json] [--minutes 20] [--rounds 5] [--dry]
    python -m bench.speed.pipeline --report      # only write the page; --check: only say whether it is up to date

A stub codec stands for a network on another device: it gives tokens of zeros at once, or sleeps as long as a codec of half
the rival's speed works. The rival decodes the same files with as many processes, and does nothing with them: a torch
DataLoader (`webdataset` for tars, a DataLoader over tarfile where that is not installed) of plain PIL. Rival, stub of no
cost and stub of half the speed take turns. The clocks run from the first batch on: processes have started by then, and
pictures wait. That of the pipeline ends with the last ledger entry (with fsync).

Without FILE: bench/results/pipeline.json and the tables of docs/datasets.md. Images: those of $NOISEBOOK_DATA, or smooth
random ones. A file of an older checkout, bench/results/pipeline_before.json, stands beside it in the table of stages.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import noisebook
from bench.lib import page
from bench.lib.cases import FLOW, INPUTS, SUFFIXES, archive, prepare
from bench.lib.record import ROOT, provenance, save, write
from noisebook.codec.codec import Codec
from noisebook.datasets.decoding import answer_to, read_bytes, requests_for
from noisebook.datasets.plan import Plan, PlanSettings
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.sources import Source, enumerate_inputs
from noisebook.datasets.store import Store
from noisebook.images.reading import read_picture
from noisebook.runtime.limits import Limits

NAME, PAGE = "pipeline", ROOT / "docs/datasets.md"
FREE, HALF = {"folder": 0.9, "tar": 0.9, "parquet": 0.8}, 0.95  # ratios that are to be reached
KINDS: dict[str, dict[str, Any]] = {
    "CIFAR-10, PNG": {"format": "PNG", "side": 32, "images": 16384, "batch": 256},
    "photographs 256 x 256, JPEG": {"format": "JPEG", "side": 256, "images": 3072, "batch": 32},
}


# ---- the rival ----------------------------------------------------------------------------------------------------------
def plain(file: Any) -> Tensor:
    """uint8 [H, W, 3] by plain PIL."""
    return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


class Files(Dataset[Tensor]):
    def __init__(self, folder: Path):
        self.paths = sorted(map(str, folder.iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return plain(self.paths[index])


def mine(things: Iterable[Any]) -> list[Any]:
    """The share of this worker."""
    worker = get_worker_info()
    return list(things)[worker.id :: worker.num_workers] if worker else list(things)


class Tars(IterableDataset[Tensor]):
    def __init__(self, folder: Path):
        self.paths = sorted(folder.iterdir())

    def __iter__(self) -> Iterator[Tensor]:
        for path in mine(self.paths):
            with tarfile.open(path) as tar:
                for member in tar:
                    yield plain(tar.extractfile(member))


class Rows(IterableDataset[Tensor]):
    def __init__(self, folder: Path):
        (self.path,) = folder.iterdir()

    def __iter__(self) -> Iterator[Tensor]:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self.path)
        for group in mine(range(file.num_row_groups)):
            for row in file.read_row_group(group, ["image"], use_threads=False)["image"].combine_chunks().field("bytes"):
                yield plain(io.BytesIO(row.as_py()))


def first_of(sample: tuple[Any, ...]) -> Tensor:
    return torch.from_numpy(np.array(sample[0]))


def rival(kind: str, place: Path, batch: int, workers: int, suffix: str) -> Iterable[Tensor]:
    how: dict[str, Any] = {"num_workers": workers}
    if kind == "tar" and find_spec("webdataset"):
        wds: Any = import_module("webdataset")
        tars = sorted(map(str, place.iterdir()))
        data = wds.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple(suffix).map(first_of)
        return DataLoader(data.batched(batch, torch.stack), batch_size=None, **how)
    data = {"folder": Files, "tar": Tars, "parquet": Rows}[kind](place)
    return DataLoader(data, batch_size=batch, **how)


def drained(batches: Iterable[Tensor]) -> float:
    """Images per second from the first batch on."""
    given = iter(batches)
    next(given)
    begin = time.perf_counter()
    return sum(len(images) for images in given) / (time.perf_counter() - begin)


# ---- the pipeline -------------------------------------------------------------------------------------------------------
class Stub:
    """A codec that sleeps `seconds` for each image, and gives tokens of zeros; all else is that of the codec."""

    def __init__(self, codec: Codec, seconds: float):
        self.codec, self.seconds = codec, seconds
        self.first: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.codec, name)

    def encode(self, images: Tensor) -> Tensor:
        begin = time.perf_counter()
        self.first = self.first or begin
        tokens = torch.zeros(len(images), self.codec.stream(*images.shape[2:]).length, dtype=torch.int64)
        time.sleep(max(0.0, begin + self.seconds * len(images) - time.perf_counter()))
        return tokens


def pipeline(codec: Codec, seconds: float, source: Source, output: Path, batch: int, workers: int, side: int) -> float:
    """Images per second from the first batch on, of a new data set with a stub."""
    stub, store = Stub(codec, seconds), Store(output)
    plan = Plan(source, PlanSettings(codec.spec, 1024, batch, 0, (side, side)))
    plan.save(store)
    Tokenizer(plan, stub, store, workers).run(range(plan.shards))  # type: ignore[arg-type]
    assert stub.first is not None
    return len(source.items) / (time.perf_counter() - stub.first)


# ---- stages -------------------------------------------------------------------------------------------------------------
def stages(source: Source, place: Path, kind: str, count: int) -> dict[str, float]:
    """Microseconds of CPU time for an image, of each part of the work by itself, in one process."""
    items = source.items[: min(count, len(source.items))]
    n, found = len(items), dict[str, float]()
    limits = Limits(memory=Limits().memory_bytes)  # asked of the machine once, as a run does

    def timed(name: str, work: Callable[[], Any], images: int = n) -> Any:
        best, answer = float("inf"), None
        for _ in range(3):
            begin = time.process_time()
            answer = work()
            best = min(best, time.process_time() - begin)
        found[name] = 1e6 * best / images
        return answer

    timed("listing", lambda: enumerate_inputs([str(place)]), len(source.items))
    requests = timed("requests", lambda: list(requests_for(source, items, 3, 0, limits)))
    if kind == "parquet":
        data: list[Any] = [request.data for request in requests]
    else:
        data = timed("reading", lambda: [read_bytes(r.file, r.item) for r in requests])
    name = items[0].key + items[0].ending
    timed("decoding", lambda: [read_picture(io.BytesIO(x), 3, name=name).remarks for x in data])
    timed("plain PIL", lambda: [plain(io.BytesIO(x)).shape for x in data])
    timed("reading and decoding", lambda: deque(map(answer_to, requests), maxlen=0))  # none is kept
    timed("columns that go along", lambda: source.carried(list(items)))
    return found


# ---- rows and tables ----------------------------------------------------------------------------------------------------
def row(name: str, kind: str, places: dict[str, Path], codec: Codec, workers: int, rounds: int, dry: bool) -> dict[str, Any]:
    about, place, source = KINDS[name], places[kind], enumerate_inputs([str(places[kind])])
    batch, count = about["batch"], len(source.items)
    side, suffix = about["side"], SUFFIXES[about["format"]]
    speeds: dict[str, list[float]] = {"rival": [], "free": [], "half": [], "free_ratio": [], "half_ratio": []}
    with tempfile.TemporaryDirectory() as folder:
        run = partial(pipeline, codec, source=source, batch=batch, workers=workers, side=side)
        for k in range(rounds):
            there = drained(rival(kind, place, batch, workers, suffix))
            free = run(0.0, output=Path(folder) / f"free-{k}")
            half = run(2 / there, output=Path(folder) / f"half-{k}")
            values = (there, free, half, free / there, 2 * half / there)
            for key, value in zip(speeds, values, strict=True):
                speeds[key].append(value)
    return {
        "name": name,
        "input": kind,
        "rival_is": "webdataset" if kind == "tar" and find_spec("webdataset") else "DataLoader",
        "real": archive(about) is not None,
        "images": count,
        "batch": batch,
        "workers": workers,
        "rounds": rounds,
        **{key: statistics.median(values) for key, values in speeds.items()},
        "free_ratios": [round(x, 3) for x in speeds["free_ratio"]],
        "half_ratios": [round(x, 3) for x in speeds["half_ratio"]],
        "stages": stages(source, place, kind, 64 if dry else 1024),
    }


def cells(ratio: float, ratios: list[float], least: float) -> list[str]:
    """A ratio (least to most), and what is to be reached."""
    reached = "reached" if ratio >= least else "not reached"
    return [f"{ratio:.3f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{least:g}: {reached}"]


def table() -> str:
    result = page.measured(NAME)
    if result is None:
        return "Not measured yet (`python -m bench.speed.pipeline`)."
    lines = [
        [
            r["name"],
            r["input"],
            f"{r['rival']:.0f} ({r['rival_is']})",
            f"{r['free']:.0f}",
            *cells(r["free_ratio"], r["free_ratios"], FREE[r["input"]]),
            *cells(r["half_ratio"], r["half_ratios"], HALF),
        ]
        for r in result["rows"]
    ]
    head = ["pictures", "input", "only decoded, images/s", "`tokenize`, codec of no cost, images/s", "ratio", "to reach"]
    head += ["ratio to a codec of half the speed", "to reach"]
    first = result["rows"][0]
    about = (
        f"Medians of {first['rounds']} rounds in turns (least to most), {first['workers']} workers on {result['cores']} "
        f"cores; load average before: {result['load']:.1f}"
    )
    return f"{page.table(head, lines)}\n\n{about}. {page.source(result, NAME)}"


def stage_table() -> str:
    result, before = page.measured(NAME), page.measured(f"{NAME}_before")
    if result is None:
        return "Not measured yet (`python -m bench.speed.pipeline`)."
    old = {(r["name"], r["input"]): r["stages"] for r in before["rows"]} if before else {}
    names = list(dict.fromkeys(stage for r in result["rows"] for stage in r["stages"]))

    def cell(r: dict[str, Any], stage: str) -> str:
        value, was = r["stages"].get(stage), old.get((r["name"], r["input"]), {}).get(stage)
        return "" if value is None else f"{value:.1f}" if was is None else f"{was:.1f} -> {value:.1f}"

    lines = [[r["name"], r["input"], *(cell(r, stage) for stage in names)] for r in result["rows"]]
    about = "Microseconds of CPU time for an image, each part by itself in one process"
    return f"{page.table(['pictures', 'input', *names], lines)}\n\n{about}. {page.source(result, NAME)}"


TABLES: dict[str, Callable[[], str]] = {"pipeline": table, "pipeline_stages": stage_table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=20.0, help="when to stop starting cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="cases whose words have this in them")
    parser.add_argument("--dry", action="store_true", help="few pictures, which prove the script")
    page.add_options(parser)
    options = parser.parse_args()
    if page.only_page(options, PAGE, TABLES):
        return 0
    torch.set_num_threads(1)
    begin, rows, left_out, load = time.monotonic(), [], [], round(os.getloadavg()[0], 1)
    codec = noisebook.load(**FLOW)
    rounds = 1 if options.dry else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, kind) in enumerate(KINDS.items()):
            places = prepare(Path(folder) / str(number), kind, 2 * kind["batch"] if options.dry else kind["images"])
            for way in INPUTS:
                if options.only not in f"{name} {way}":
                    continue
                if time.monotonic() - begin > 60 * options.minutes:
                    left_out.append([name, way])
                    continue
                rows.append(row(name, way, places, codec, options.workers, rounds, options.dry))
                r = rows[-1]
                ratios = f"{r['free_ratio']:.2f} {r['free_ratios']}, half: {r['half_ratio']:.2f} {r['half_ratios']}"
                print(f"{name}, {way}: {r['rival']:.0f} -> {r['free']:.0f} images/s, ratio {ratios}", flush=True)
                print("  " + ", ".join(f"{stage} {value:.1f}" for stage, value in r["stages"].items()), flush=True)
    result = {"dry": options.dry, "load": load, "rows": rows, "left_out": left_out}
    if options.file:
        save(options.file, {**provenance(0), **result})
    else:
        write(NAME, result, 0)
        page.fill(PAGE, TABLES, False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
