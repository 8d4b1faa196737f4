"""Measures the launch settings of the kernels on a GPU and writes kernels/noisebook_kernels/tuned.json.

python -m tools.tune FILE.json              # measures; FILE holds every time and the table, the package gets the table
python -m tools.tune --install FILE.json    # writes the table of a file measured elsewhere into the package

A kernel's module lists its CANDIDATES. One is kept only if it gives the same tokens as the defaults, and replaces them
only where it is faster by more than --margin. --dry: tiny sizes in Triton's interpreter; the package's table stays.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import torch

from bench.lib.kernels import Case, prepare
from bench.lib.record import provenance, refuse_dry, save
from bench.lib.timing import Clock, measure
from noisebook_kernels import hadamard, independent, tuning

MODULES: dict[str, ModuleType] = {"hadamard": hadamard, "independent": independent}
Settings = dict[str, int]


class Forced:
    """What the kernels' wrappers asked the table for while a setting was forced on them."""

    def __init__(self) -> None:
        self.buckets: set[str] = set()
        self.defaults: Settings = {}


@contextlib.contextmanager
def forced(module: ModuleType, name: str, candidate: Settings) -> Iterator[Forced]:
    """Every look-up of kernel `name` answers `candidate` over the defaults, inside the `with` block."""
    asked, look_up = Forced(), module.settings

    def settings(kernel: str, device: torch.device, defaults: Settings, **sizes: int) -> Settings:
        if kernel != name:
            return look_up(kernel, device, defaults, **sizes)
        asked.buckets.add(tuning.bucket(sizes))
        asked.defaults = dict(defaults)
        return {**defaults, **candidate}

    module.settings = settings  # type: ignore[attr-defined]
    try:
        yield asked
    finally:
        module.settings = look_up  # type: ignore[attr-defined]


def cases(dry: bool) -> Iterator[Case]:
    """Sizes in order of value: the largest P first, the most images first."""
    if dry:
        yield from (Case("select", codebook, 20, 1 << 6, 2) for codebook in MODULES)
        return
    for logp in (12, 10, 11, 9, 8):
        for codebook in MODULES:
            yield from (Case("select", codebook, 1 << logp, 1 << 20, batch) for batch in (256, 64, 16, 1))


def tune(case: Case, clock: Clock, margin: float) -> dict[str, Any]:
    """Times of the defaults and of all candidates for one size, and which of them to keep."""
    module = MODULES[case.codebook]
    call, copies = prepare(case, clock.device)
    tried: list[dict[str, Any]] = []
    want = None
    candidates = module.CANDIDATES if clock.cuda else module.CANDIDATES[:1]
    for candidate in [{}, *candidates]:
        with forced(module, case.codebook, candidate) as asked:
            try:
                tokens = call(0).clone()
                want = tokens if want is None else want
                entry = {
                    "settings": asked.defaults | candidate,
                    "buckets": sorted(asked.buckets),
                    "same_tokens": bool(torch.equal(tokens, want)),
                    **measure(clock, call, copies, seconds=0.05),
                }
            except Exception as error:  # too many registers or too much shared memory for this device
                if not candidate:
                    raise
                entry = {"settings": candidate, "error": f"{type(error).__name__}: {error}"[:300]}
        tried.append(entry)
    best = choose(tried, margin)
    return {
        "name": case.name,
        "kernel": case.codebook,
        "buckets": tried[0]["buckets"],
        "best": best["settings"],
        "gain": 1 - median(best) / median(tried[0]),
        "tried": tried,
    }


def median(entry: dict[str, Any]) -> float:
    """Milliseconds: as a graph where there is one."""
    times = entry["times"]
    return times.get("graph", times["plain"])["median_ms"]


def choose(tried: list[dict[str, Any]], margin: float) -> dict[str, Any]:
    """The fastest entry with the tokens of the first, the defaults; those unless it beats them by more than `margin`."""
    best = min((entry for entry in tried if entry.get("same_tokens")), key=median)
    return best if median(best) < (1 - margin) * median(tried[0]) else tried[0]


def install(result: dict[str, Any]) -> None:
    """Puts the tables of the result's device into the package, beside those of other devices."""
    table = tuning.read_table()
    table[result["gpu"]["capability"]] = table.get(result["gpu"]["capability"], {}) | result["table"]
    save(tuning.TABLE, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=10.0, help="when to stop starting sizes")
    parser.add_argument("--margin", type=float, default=0.02, help="share by which a setting must beat the defaults")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--install", action="store_true", help="only write the table of FILE into the package")
    options = parser.parse_args()
    if options.install:
        result = json.loads(options.file.read_text())
        refuse_dry(result, options.file.name)
        install(result)
        return 0
    deadline = time.monotonic() + 0.9 * 60 * options.minutes
    device = torch.device("cpu" if options.dry else "cuda")
    clock = Clock(device, (2, 2)) if options.dry else Clock(device, (7, 50))
    result = {
        **provenance(None, device.type),
        "dry": options.dry,
        "about": "Medians and quartiles in ms of every setting",
        "table": {},
        "rows": [],
        "left_out": [],
        "failed": [],
    }
    for case in cases(options.dry):
        if time.monotonic() > deadline:
            result["left_out"].append(case.name)
            continue
        try:
            row = tune(case, clock, options.margin)
        except Exception as error:
            result["failed"].append({"name": case.name, "error": f"{type(error).__name__}: {error}"[:500]})
            print(f"{case.name} FAILED: {error}", file=sys.stderr)
        else:
            result["rows"].append(row)
            for bucket in row["buckets"]:
                result["table"].setdefault(case.codebook, {})[bucket] = row["best"]
            print(f"{case.name:46s} {row['best']}  {100 * row['gain']:.0f} % faster than the defaults", flush=True)
        save(options.file, result)
    if result["table"] and not options.dry:
        install(result)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
