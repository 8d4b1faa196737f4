"""Many processes at once on this machine, what a picture and a plan cost, and arithmetic for many GPUs.

    python -m bench.speed.scaling              # about ten minutes on two slow cores
    python -m bench.speed.scaling --report     # only write docs/scale.md; --check: only say whether it is up to date

One data set, made anew each time by the real command: one process, two ranks, two ranks of torchrun, actors of Ray; a codec
thread and a decoding process each. Speed is what each process does between its first and its last shard, summed: starting
up is shown apart. Then pictures decoded a second on one core, and plans of many items. Writes bench/results/scaling.json
and the tables of docs/scale.md; those of arithmetic take the measured figures of a GPU from gpu_throughput.json and
gpu_cod.json.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.lib import cases, page
from bench.lib.images import write_parquet
from bench.lib.record import ROOT, write
from bench.lib.unet import SIDE
from noisebook.datasets.decoding import Picture, decode
from noisebook.datasets.ledger import sha256
from noisebook.datasets.plan import Plan, PlanSettings
from noisebook.datasets.sources.base import File, Item, Items
from noisebook.datasets.sources.webdataset import WebDataset
from noisebook.datasets.store import Store

NAME, PAGE = "scaling", ROOT / "docs/scale.md"
IMAGES, SHARD, BATCH, ROUNDS = 384, 16, 16, 3
RANKS = [{"RANK": str(k), "WORLD_SIZE": "2"} for k in range(2)]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RAY = ["--engine", "ray", "--actors"]
WAYS: dict[str, tuple[list[str], list[dict[str, str]], list[str]]] = {  # launcher, an environment a process, options
    "1 process": ([], [{}], []),
    "2 ranks by environment": ([], RANKS, []),
    "2 ranks of `torchrun`": (TORCHRUN, [{}], []),
    "Ray, 1 actor": ([], [{}], [*RAY, "1"]),
    "Ray, 2 actors": ([], [{}], [*RAY, "2"]),
}
IMAGENET, BILLION, GPUS = 1_281_167, 10**9, 64
Result = dict[str, Any]


# ---- processes ----------------------------------------------------------------------------------------------------------
def options() -> list[str]:
    """The codec of the first case of bench/lib/cases.py, as options."""
    return [word for k, v in cases.FLOW.items() for word in (f"--{k.replace('_', '-')}", str(v))]


def run(way: str, source: Path, output: Path) -> Result:
    """Makes the data set: seconds until the first shard, images a second from then on, SHA-256 over the shards."""
    launcher, environments, more = WAYS[way]
    plain = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": "local",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "engine"), str(ROOT / "kernels")]),
    }
    command = [
        sys.executable,
        *launcher,
        "-m",
        "noisebook",
        "tokenize",
        str(source),
        "-o",
        str(output),
        *options(),
        "--shard-size",
        str(SHARD),
        "--batch-size",
        str(BATCH),
        "--workers",
        "1",
        "--resume",
        *more,
    ]
    begin = time.time()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, env={**plain, **e}, **quiet) for e in environments]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{way}: exit codes {codes}")
    wall, makers = time.time() - begin, defaultdict(list)
    for path in output.glob("events-*.jsonl"):
        for event in map(json.loads, path.read_text().splitlines()):
            if event["event"] == "shard":
                makers[event["process"]].append((event["time"], event["n_in"]))
    speed = sum(sum(n for _, n in rows[1:]) / (rows[-1][0] - rows[0][0]) for rows in map(sorted, makers.values()))
    first = min(time for rows in makers.values() for time, _ in rows)
    made = sha256(b"".join(path.read_bytes() for path in sorted((output / "shards").iterdir())))
    return {"images_per_s": speed, "first_shard_s": first - begin, "wall_s": wall, "makers": len(makers), "sha256": made}


def processes(folder: Path) -> list[Result]:
    write_parquet(folder / "in.parquet", cases.pictures(cases.CASES[0], IMAGES), np.zeros(IMAGES, int))
    found: dict[str, list[Result]] = {way: [] for way in WAYS}
    for k in range(ROUNDS):
        for n, way in enumerate(WAYS):
            found[way].append(run(way, folder / "in.parquet", folder / f"out-{k}-{n}"))
            print(f"{way}: {found[way][-1]['images_per_s']:.1f} images/s, {found[way][-1]['wall_s']:.0f} s", flush=True)
    wanted = found["1 process"][0]["sha256"]
    middle = ("images_per_s", "first_shard_s", "wall_s")
    return [
        {
            "way": way,
            **{key: statistics.median(r[key] for r in rows) for key in middle},
            "all": [round(r["images_per_s"], 2) for r in rows],
            "same_bytes": all(r["sha256"] == wanted for r in rows),
        }
        for way, rows in found.items()
    ]


# ---- pictures and plans -------------------------------------------------------------------------------------------------
def decoding() -> list[Result]:
    """Pictures a second that one core decodes, through all checks of the loader."""
    rows = []
    for side, case in ((32, cases.CASES[0]), (256, cases.CASES[1])):
        images = cases.pictures(case, 64)
        for kind in ("PNG", "JPEG"):
            files = []
            for image in images:
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
                files.append(buffer.getvalue())
            times = []
            for _ in range(7):
                begin = time.perf_counter()
                pictures = [decode(data, f"x.{kind.lower()}", 3) for data in files]
                times.append(time.perf_counter() - begin)
                assert all(isinstance(p, Picture) for p in pictures)
            rows.append(
                {
                    "side": side,
                    "kind": kind,
                    "images_per_s": len(files) / statistics.median(times),
                    "bytes": statistics.mean(map(len, files)),
                }
            )
    return rows


PLAN = "from bench.speed import scaling; scaling.plan({count}, {folder!r})"


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def plan(count: int, folder: str) -> None:
    """Prints what a plan of `count` items of a tar takes: seconds to write and to load, bytes in memory and on disk."""
    import noisebook

    spec = noisebook.load(**cases.FLOW).spec
    before = resident()
    sizes = np.random.default_rng(0).integers(20_000, 200_000, count).tolist()
    starts = np.cumsum([0, *sizes]).tolist()
    items = (
        Item(f"n{i // 1300:08d}/{i:08d}", i // 1000, starts[i], sizes[i], ".jpg", f'{{"cls": [{starts[i + 1]}, 3]}}')
        for i in range(count)
    )
    files = [File(f"train-{i:06d}.tar", f"train-{i:06d}.tar", 1 << 20, "1") for i in range(-(-count // 1000))]
    made, store = Plan(WebDataset(files, Items.of(items)), PlanSettings(spec, 1000, 32, 0, (256, 256))), Store(folder)
    memory, begin = resident() - before, time.perf_counter()
    made.save(store)
    saved, begin = time.perf_counter() - begin, time.perf_counter()
    assert (loaded := Plan.load(store)) is not None
    assert loaded.hash == made.hash
    disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(
        json.dumps({"items": count, "memory": memory, "disk": disk, "save_s": saved, "load_s": time.perf_counter() - begin})
    )


def plans(folder: Path) -> list[Result]:
    rows = []
    for count in (100_000, 1_000_000):
        (folder / f"plan-{count}").mkdir()
        code = PLAN.format(count=count, folder=str(folder / f"plan-{count}"))
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    return rows


# ---- tables -------------------------------------------------------------------------------------------------------------
def process_table() -> str:
    result = page.load(NAME)
    one = result["processes"][0]["images_per_s"]
    rows = [
        [
            r["way"],
            f"{r['images_per_s']:.1f} ({min(r['all']):.1f} to {max(r['all']):.1f})",
            f"{r['images_per_s'] / one:.2f} x",
            f"{r['first_shard_s']:.0f} s",
            "yes" if r["same_bytes"] else "NO",
        ]
        for r in result["processes"]
    ]
    head = ["way", "images/s", "of one process", "until the first shard", "the same bytes"]
    about = (
        f"{result['images']} images of CIFAR-10, shards of {SHARD}, 8 network calls each, {result['rounds']} rounds in"
        f" turns, medians (least to most); the load average of the machine was {result['load']:.1f} before, on its "
        f"{result['cores']} cores"
    )
    return f"{page.table(head, rows)}\n\n{about}. {page.source(result, NAME)}"


def cost_table() -> str:
    result = page.load(NAME)
    rows = [
        [
            f"decode {r['kind']}, {r['side']} x {r['side']}",
            f"{r['images_per_s']:,.0f} images/s on one core",
            f"{r['bytes'] / 1024:.1f} KiB per image",
        ]
        for r in result["decoding"]
    ]
    for r in result["plans"]:
        size = f"{r['memory'] / r['items']:.0f} bytes per item in memory, {r['disk'] / r['items']:.0f} on disk"
        rows.append([f"a plan of {r['items']:,} items", f"{r['save_s']:.1f} s to write, {r['load_s']:.1f} s to load", size])
    return f"{page.table(['what', 'time', 'size'], rows)}\n\n{page.source(result, NAME)}"


def speeds() -> list[tuple[str, float, float | None, str]]:
    """(what, images a second of one GPU, share of it outside the network, how it is known), from the measured files."""
    measured, cod = page.load("gpu_throughput"), page.load("gpu_cod")
    row = next(
        r
        for r in measured["rows"]
        if r.get("graphs") and r["verb"] == "encode" and r["codebook"] == "hadamard" and r["way"]["dtype"] == "bfloat16"
    )
    whole = max((r for r in cod["rows"] if r["verb"] == "encode"), key=lambda r: r["images_per_s"])
    name = f"U-Net of {row['parameters'] / 1e6:.0f} M weights, {row['steps']} calls"
    scaled = row["images_per_s"] * (SIDE / 256) ** 2
    return [
        (f"{name}, 32 x 32", row["images_per_s"], row["share_outside"], "measured"),
        (f"{name}, 256 x 256", scaled, row["share_outside"], "arithmetic: 64 times the pixels, 64 times the time"),
        ("the same with 25 calls, 256 x 256", scaled * row["steps"] / 25, row["share_outside"], "arithmetic"),
        (f"CoD's encoder, no network call, {whole['side']} x {whole['side']}", whole["images_per_s"], None, "measured"),
    ]


def span(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def sum_table() -> str:
    rows = []
    for what, speed, _, known in speeds():
        cells = (
            span(IMAGENET / speed),
            span(IMAGENET / speed / 8),
            span(IMAGENET / speed / GPUS),
            span(BILLION / speed / GPUS),
        )
        rows.append([what, f"{speed:,.1f}", known, *cells])
    device = page.load("gpu_throughput")["device"]
    head = [
        "codec",
        f"images/s of one {device}",
        "that is",
        "ImageNet, 1 GPU",
        "8 GPUs",
        f"{GPUS} GPUs",
        f"a billion images, {GPUS} GPUs",
    ]
    note = (
        f"Arithmetic, not a measurement: ImageNet is {IMAGENET:,} images; the speeds are those of "
        "`bench/results/gpu_throughput.json` and `gpu_cod.json`, as if no GPU ever waited"
    )
    return f"{page.table(head, rows)}\n\n{note}."


def share_table() -> str:
    """Where the time of a GPU and of cores beside it goes, an image of 256 x 256."""
    result = page.load(NAME)
    jpeg = next(r["images_per_s"] for r in result["decoding"] if (r["side"], r["kind"]) == (256, "JPEG"))
    rows = []
    for what, speed, outside, _ in speeds()[1:]:
        pixels = (int(what.rsplit(" x ", 1)[1]) / 256) ** 2
        network = "none" if outside is None else f"{1e3 * (1 - outside) / speed:.1f} ms"
        rest = (
            f"{1e3 / speed:.2f} ms, all of it"
            if outside is None
            else f"{1e3 * outside / speed:.2f} ms ({100 * outside:.1f} %)"
        )
        rows.append([what, network, rest, f"{speed * pixels / jpeg:.2f}"])
    head = ["codec", "network, GPU time per image", "search, update and the rest", "cores that decode JPEG for one GPU"]
    about = f"a core decodes {jpeg:,.0f} JPEG of 256 x 256 per second (measured, above, on {result['device']})"
    note = f"Arithmetic: {about}, and of larger ones fewer, in proportion to their pixels"
    return f"{page.table(head, rows)}\n\n{note}."


TABLES: dict[str, Callable[[], str]] = {
    "processes": process_table,
    "costs": cost_table,
    "sums": sum_table,
    "shares": share_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    page.add_options(parser)
    if page.only_page(parser.parse_args(), PAGE, TABLES):
        return
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "load": round(load, 1),
            "images": IMAGES,
            "rounds": ROUNDS,
            "processes": processes(Path(folder)),
            "decoding": decoding(),
            "plans": plans(Path(folder)),
        }
    write(NAME, found, 0)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
