"""Flipped bits and cut files of a finished data set, and what stays the same from run to run."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import noisebook
from bench.lib.images import smooth
from bench.reliability.faults_kit import LIMIT, Child, Ground, digest, faults_of, remove, wait_for
from noisebook.datasets import ledger
from noisebook.datasets.plan import FILES, ITEMS, PLAN, Plan
from noisebook.datasets.reader import TokenDataset
from noisebook.datasets.store import Store
from noisebook.datasets.verify import check
from noisebook.errors import NoisebookError
from noisebook.images.metrics import psnr
from noisebook.runtime.pixels import to_uint8

Damage = Callable[[bytes, int], bytes]


def flip(data: bytes, bit: int) -> bytes:
    """The same with one bit of it the other way."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def cut(data: bytes, length: int) -> bytes:
    return data[:length]


def outcomes(numbers: Iterable[int], judge: Callable[[int], str]) -> Counter[str]:
    """How often `judge` gives what, in forked children: one that dies is a "crash", one that goes on for LIMIT seconds
    without a word a "hang"."""
    left, found = list(numbers), Counter[str]()
    while left:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with os.fdopen(writer, "w") as out:
                    for number in left[:4000]:
                        out.write(judge(number) + "\n")
                        out.flush()
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:  # ends when the child does, which an alarm sees to
            answers = _lines(lines, pid)
        done = len(answers)
        found.update(answers)
        if done < len(left[:4000]):
            found["crash or hang"] += 1
            done += 1
        left = left[done:]
    return found


def _lines(lines: Any, pid: int) -> list[str]:
    """What a child says; it is killed when it says nothing for LIMIT seconds."""
    import select

    text, handle = b"", lines.fileno()
    while True:
        ready, _, _ = select.select([handle], [], [], LIMIT)
        some = os.read(handle, 1 << 16) if ready else b""
        if not some:
            if not ready:
                os.kill(pid, signal.SIGKILL)
            break
        text += some
    wait_for(pid, LIMIT)
    return text.decode().split("\n")[:-1]


class Other(Store):
    """A data set of which one file has other bytes than on the disk."""

    def __init__(self, folder: Path, name: str, data: bytes):
        super().__init__(folder)
        self.name, self.data = name, data

    def read(self, name: str) -> bytes | None:
        return self.data if name == self.name else super().read(name)


def damaged_files(ground: Ground, only: Callable[[int], bool] = lambda _: True) -> dict[str, Any]:
    """Every bit flipped, and every length cut to, of a shard, its ledger entry and the three files of the plan: which are
    found, which change nothing that is read ("harmless"), which are read as something else ("wrong")."""
    source = ground.folder / "few"
    source.mkdir()
    for name in sorted(ground.input.iterdir())[:6]:
        shutil.copy(name, source)
    output = ground.whole(source=source)
    shard, entry = ledger.shard_name(0), ledger.ledger_name(0)
    rows, faults = [], []
    readers: list[tuple[str, str, Callable[[bytes], str]]] = [
        (shard, "`noisebook verify`", _verify(output, shard)),
        (shard, "`TokenDataset`", _dataset(output)),
        (shard, "Parquet's page checksums alone", _parquet_alone(output / shard)),
        (entry, "`noisebook verify`", _verify(output, entry)),
        *((name, "whoever opens the data set", _plan(output, name)) for name in (PLAN, ITEMS, FILES)),
    ]
    for name, reader, judge in readers:
        data = (output / name).read_bytes()
        for what, count, damage in (("bit flipped", 8 * len(data), flip), ("cut short", len(data), cut)):
            numbers = [n for n in range(count) if only(n)]
            found = outcomes(numbers, lambda n, d=data, f=damage, j=judge: j(f(d, n)))  # type: ignore[misc]
            rows.append({"file": name, "reader": reader, "damage": what, "tried": len(numbers), **found})
            if "alone" not in reader and set(found) - {"found", "harmless"}:
                faults.append(f"{name}, {reader}, {what}: {dict(found)}")
            if name == shard and "alone" not in reader and found["found"] != len(numbers):
                faults.append(f"{name}, {reader}, {what}: {dict(found)}")
    faults += faults_of(output, digest(output))  # all is as it was
    return {"rows": rows, "tried": sum(row["tried"] for row in rows), "faults": faults}


def _verify(output: Path, name: str) -> Callable[[bytes], str]:
    """On the disk, through the function of the command. Its children write to copies of their own."""
    before = json.dumps(check(str(output)))

    def judge(data: bytes) -> str:
        mine = output.with_name(f"{output.name}-{os.getpid()}")
        if not mine.exists():
            shutil.copytree(output, mine)
        (mine / name).write_bytes(data)
        try:
            found = check(str(mine))
            return "harmless" if json.dumps(found) == before else "wrong" if found["complete"] else "found"
        except NoisebookError:
            return "found"
        except Exception as error:
            return f"untyped {type(error).__name__}"

    return judge


def _dataset(output: Path) -> Callable[[bytes], str]:
    data = TokenDataset(str(output))
    name = ledger.shard_name(0)

    def judge(some: bytes) -> str:
        data.store = Other(output, name, some)
        return _typed(lambda: data.read(data.done[0]) is None)

    return judge


def _typed(read: Callable[[], bool]) -> str:
    """What becomes of a read that says whether it was as it should be."""
    try:
        return "harmless" if read() else "wrong"
    except NoisebookError:
        return "found"
    except Exception as error:
        return f"untyped {type(error).__name__}"


def _parquet_alone(path: Path) -> Callable[[bytes], str]:
    """A reader that knows of no ledger: pyarrow, asked to verify page checksums."""

    def read(data: bytes) -> pa.Table:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()

    whole = read(path.read_bytes())

    def judge(data: bytes) -> str:
        try:
            found = read(data)
        except Exception:
            return "found"
        same = found.schema.equals(whole.schema, check_metadata=False) and found.equals(whole)
        if not same:
            return "wrong"
        return "harmless" if found.schema.metadata == whole.schema.metadata else "wrong metadata alone"

    return judge


def _plan(output: Path, name: str) -> Callable[[bytes], str]:
    there = Plan.load(Store(output))
    assert there is not None
    about = (there.hash, there.stamp, [file.path for file in there.source.files])

    def same(data: bytes) -> bool:
        plan = Plan.load(Other(output, name, data))
        return plan is not None and (plan.hash, plan.stamp, [file.path for file in plan.source.files]) == about

    return lambda data: _typed(lambda: same(data))


def remade(ground: Ground, count: int) -> dict[str, Any]:
    """Shards and ledger entries with a flipped bit, cut or removed: --resume makes them anew, to the same bytes."""
    output, faults = ground.whole(), []
    wanted, names = digest(output), [*(output / "shards").iterdir(), *(output / "ledger").iterdir()]
    for number in range(count):
        path = names[number % len(names)]
        data = path.read_bytes()
        kind = number // len(names) % 3
        place = int(ground.rng.integers(8 * len(data)))
        path.unlink() if kind == 2 else path.write_bytes(flip(data, place) if kind == 0 else cut(data, place // 8))
        if check(str(output))["complete"]:
            faults.append(f"{path.name}: not found")
        child = Child(ground.arguments(output, "--resume"))
        if (code := child.wait()) != 3:
            faults.append(f"{path.name}: exit code {code}: {child.errors()[-300:]}")
        faults += faults_of(output, wanted)
    return {"tried": count, "faults": faults}


# ---- what stays the same ------------------------------------------------------------------------------------------------
def same_again(ground: Ground, workers: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Class D1: the same inputs and settings give the same bytes, with any number of workers."""
    digests = {}
    for count in (*workers, workers[0]):
        output = ground.whole(workers=count)
        digests.setdefault(digest(output), []).append(count)
        remove(output)
    return {
        "tried": len(workers) + 1,
        "workers": list(workers),
        "faults": [] if len(digests) == 1 else [f"other bytes: {list(digests.values())}"],
    }


def classes(images: int, seed: int, backbone: str = "cifar10-flow", side: int = 32) -> dict[str, Any]:
    """What other batch sizes and thread counts change: tokens that differ, and PSNR between two decodes of the same tokens.

    Each row is compared with the first; the second is the same call again. Figures, no promise but for that second row.
    """
    rng = np.random.default_rng(seed)
    batch = torch.from_numpy(np.stack([smooth(rng, side, side) for _ in range(images)])).permute(0, 3, 1, 2).contiguous()
    codec = noisebook.load(
        backbone=backbone, dtype="float32", steps=10, budget=8, budget_last=8, vocab_size=4096, scale_pixels=0
    )
    rows, first, seen, threads = [], None, None, torch.get_num_threads()
    for count, size in ((1, images), (1, images), (1, max(1, images // 4)), (1, 1), (2, images)):
        torch.set_num_threads(count)
        tokens = torch.cat([codec.encode(some) for some in batch.split(size)])
        first = tokens if first is None else first
        shown = to_uint8(torch.cat([codec.decode(some, (side, side)) for some in first.split(size)])).numpy()
        seen = shown if seen is None else seen
        apart = [value for a, b in zip(shown, seen, strict=True) if (value := psnr(a, b)) is not None]
        rows.append(
            {
                "threads": count,
                "batch": size,
                "tokens": int(tokens.numel()),
                "other_tokens": int((tokens != first).sum()),
                "other_images": int((tokens != first).any(1).sum()),
                "values": shown.size,
                "other_values": int((shown != seen).sum()),
                "worst_psnr": min(apart) if apart else None,
            }
        )
    torch.set_num_threads(threads)
    same = not rows[1]["other_tokens"] and not rows[1]["other_values"]
    return {
        "backbone": backbone,
        "images": images,
        "side": side,
        "rows": rows,
        "tried": 1,
        "faults": [] if same else ["the same call twice gives other tokens or pixels"],
    }


def timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, and how many seconds that took."""
    begin = time.monotonic()
    found = work()
    return {**found, "seconds": round(time.monotonic() - begin, 1)}
