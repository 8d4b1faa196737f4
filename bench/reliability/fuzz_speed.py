"""How fast `.nbk` files are read and written, by the C++ extension and by the Python definition."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from noisebook.format import container, cost, entropy
from noisebook.format.container import Container, pack, unpack
from tools import golden_nbk


@contextmanager
def definition() -> Iterator[None]:
    """Inside, only Python reads and writes files."""
    modules = (container, entropy, cost)
    whole = container.native
    for module in modules:
        module.native = lambda: None
    try:
        yield
    finally:
        for module in modules:
            module.native = whole


def speeds(rng: np.random.Generator, repeats: int) -> list[dict[str, Any]]:
    """Medians of C++ and of Python, in turns."""
    big, preset = rng.bytes(1 << 18), (golden_nbk.FOLDER / "preset.nbk").read_bytes()
    file = Container(bytes(8), 512, 512, big[:65536], 1).to_bytes()
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("checksum of 256 KiB", lambda: container.crc32c(big)),
        (f"frame of a file of {len(preset)} bytes", lambda: container.frame_of(preset)),
        (f"frame of a file of {len(file):,} bytes", lambda: container.frame_of(file)),
    ]
    for vocab_size in (65536, 1000):
        for count in (64, 100_000):
            runs = [(count, vocab_size)]
            tokens = rng.integers(0, vocab_size, count)
            payload = pack(tokens, runs)
            what = f"{count:,} tokens of {vocab_size:,} values"
            cases.append((f"pack {what}", lambda tokens=tokens, runs=runs: pack(tokens, runs)))
            cases.append((f"unpack {what}", lambda payload=payload, runs=runs: unpack(payload, runs)))
    rows = []
    for what, call in cases:
        times: dict[str, list[float]] = {"native": [], "python": []}
        for _ in range(repeats):
            times["native"].append(timed(call))
            with definition():
                times["python"].append(timed(call))
        native, python = (float(np.median(times[key])) for key in ("native", "python"))
        rows.append({"what": what, "native_median": native, "python_median": python, "ratio": python / native})
    return rows


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one of the calls that fit 2 ms."""
    begin, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < 2e-3 or not calls:
        call()
        calls += 1
    return spent / calls
