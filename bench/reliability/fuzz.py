"""What hostile and damaged `.nbk` files do to their readers, and how fast these are.

    python -m bench.reliability.fuzz
    python -m bench.reliability.fuzz --report      # only write the page; --check: only say whether it is up to date

Compiles tests/fuzz_nbk.cpp with the address and undefined-behaviour sanitizers, runs it on mutated and on made-up files,
lets the Python definition judge a sample of such inputs, tries every flipped bit and every truncation of small files, and
specifications made by hand. Writes bench/results/fuzz.json and the tables of docs/reliability.md, unless anything fails.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib import page
from bench.lib.record import ROOT, write
from bench.reliability.fuzz_page import NAME, PAGE, TABLES, VERDICTS
from bench.reliability.fuzz_speed import definition, speeds
from noisebook import FormatError, SpecError
from noisebook.format import container
from noisebook.format.container import Container, pack, packed_bits, unpack
from noisebook.format.refusals import REFUSALS
from noisebook.images.files import spec_of, token_runs
from tools import golden_nbk

BATCH, HANGS = 25_000, 300  # inputs of a process, and the seconds after which it hangs
SANITIZED = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ENVIRONMENT = {"ASAN_OPTIONS": "max_allocation_size_mb=64:detect_leaks=1"}  # a larger request is a crash
Sample = tuple[bytes, list[tuple[int, int]]]  # a file, and plain runs that its payload is of


def build(folder: Path) -> Path:
    """Compiles the harness. Raises CalledProcessError or OSError where there is no compiler with sanitizers."""
    out = folder / "fuzz_nbk"
    sources = [str(ROOT / "tests/fuzz_nbk.cpp"), str(ROOT / "csrc/nbk.cpp")]
    subprocess.run([os.environ.get("CXX", "g++"), *SANITIZED, *sources, "-o", str(out)], check=True, capture_output=True)
    subprocess.run([str(out)], capture_output=True, timeout=60)  # that it starts
    return out


# ---- files --------------------------------------------------------------------------------------------------------------
def variants(rng: np.random.Generator) -> list[bytes]:
    """A file of each variant of the format, with fresh tokens."""
    out = []
    for spec, size, derived in golden_nbk.variants().values():
        runs = [run for _, run in spec.runs_for(*size)]
        out.append(golden_nbk.made(spec, size, derived, golden_nbk.drawn(runs, rng)).to_bytes())
    return out


def corpus(rng: np.random.Generator) -> list[Sample]:
    """Valid files to begin with: all variants, and payloads of many vocabularies; one is large, one is empty."""
    out: list[Sample] = []
    for data in variants(rng) + [path.read_bytes() for path in golden_nbk.FOLDER.glob("*.nbk")]:
        if of_python(data):
            continue
        found = Container.from_bytes(data)
        spec = spec_of(found)
        runs = token_runs(spec, found.height, found.width) if spec else []
        plain = [(run.count, run.vocab_size) for run in runs]
        if any(run.subset or run.zipf for run in runs):  # their bits as tokens of one bit
            plain = [(8 * len(found.payload), 2)]
        out.append((data, plain))
    for i, vocab_size in enumerate((2, 6, 10, 256, 1000, 65536, 65538, 1 << 20, 1 << 33, (1 << 33) - 2)):
        runs = [(int(rng.integers(1, 40)), vocab_size), (int(rng.integers(0, 9)), 4)]
        runs = [] if i == 0 else [(40_000, 1000)] if i == 1 else runs
        tokens = np.concatenate([np.empty(0, np.int64), *(rng.integers(0, v, n) for n, v in runs)])
        derived = (i + 1, 1000 + i) if i % 2 else None
        found = Container(rng.bytes(8), 1 + i, 65535 - i, pack(tokens.astype(np.int64), runs), i, None, derived)
        out.append((found.to_bytes(), runs))
    return out


def of_python(data: bytes) -> bool:
    """Whether C++ leaves a file to Python, for a flag that it does not know: that of a scaled curve."""
    return len(data) > 2 and bool(data[2] & container.FLAG_SCALED)


def record_of(sample: Sample) -> bytes:
    data, runs = sample
    return struct.pack("<II", len(data), len(runs)) + b"".join(struct.pack("<QQ", *run) for run in runs) + data


def records(data: bytes) -> Iterator[tuple[str, Sample]]:
    """(verdict, input) of each record of a dump."""
    at = 0
    while at < len(data):
        size, count = struct.unpack_from("<II", data, at)
        runs = [struct.unpack_from("<QQ", data, at + 8 + 16 * i) for i in range(count)]
        at += 8 + 16 * count
        yield VERDICTS[data[at]], (data[at + 1 : at + 1 + size], runs)
        at += 1 + size


# ---- the parts ----------------------------------------------------------------------------------------------------------
def batch(harness: Path, files: Path, seed: int, first: int, count: int, dump: Path | None = None) -> dict[str, Any]:
    """What the harness says of `count` inputs. Raises RuntimeError, naming the input, where it crashes, refuses its own
    invariants, or hangs."""
    command = [str(harness), str(files), str(seed), str(first), str(count), *([str(dump)] if dump else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=os.environ | ENVIRONMENT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"inputs {first} ... {first + count - 1} of seed {seed} hang") from None
    if done.returncode:
        raise RuntimeError(f"seed {seed}, from input {first}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def fuzzed(harness: Path, files: Path, seed: int, count: int, processes: int) -> dict[str, Any]:
    starts = range(0, count, BATCH)
    begin = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(lambda a: batch(harness, files, seed, a, min(BATCH, count - a)), starts))
    seconds = time.perf_counter() - begin
    verdicts = {kind: dict(sum((Counter(f["verdicts"][kind]) for f in found), Counter())) for kind in found[0]["verdicts"]}
    slowest = max((f["slowest"] for f in found), key=lambda s: s["ns"])
    return {
        "inputs": sum(sum(v.values()) for v in verdicts.values()),
        "bytes": sum(f["bytes"] for f in found),
        "seconds": seconds,
        "processes": processes,
        "verdicts": verdicts,
        "slowest": slowest,
        "crashes": 0,
        "hangs": 0,
    }  # each of them would have ended this run


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the message of its FormatError."""
    try:
        value = call()
    except FormatError as error:
        return f"refused: {error}"
    return value.tolist() if isinstance(value, np.ndarray) else value


def judged(sample: Sample) -> tuple[Any, Any, Any]:
    """(frame, container, tokens) of an input, or messages; tokens None where the frame is refused."""
    data, runs = sample
    frame = outcome(lambda: container.frame_of(data))
    tokens = None if isinstance(frame, str) else outcome(lambda: unpack(data[frame.payload : -4], runs))
    return frame, outcome(lambda: Container.from_bytes(data)), tokens


def compared(samples: Iterator[tuple[str, Sample]]) -> dict[str, int]:
    """Raises AssertionError where C++ through its binding, Python, and the harness do not say the same of an input."""
    counts: Counter[str] = Counter()
    for verdict, sample in samples:
        ours = judged(sample)
        with definition():
            assert ours == judged(sample), f"C++ and Python differ on {record_of(sample).hex()}"
        said = ours[0] if isinstance(ours[0], str) else ours[2]
        if verdict == "version" and of_python(sample[0]):
            counts["accepted" if isinstance(ours[1], container.Container) else "refused"] += 1
            continue
        if verdict == "accepted":
            assert isinstance(said, list), f"only the harness accepts {record_of(sample).hex()}"
            with definition():
                assert pack(np.array(said, np.int64), sample[1]) == sample[0][ours[0].payload : -4]
        else:
            pattern = re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(f"refused: {REFUSALS[verdict]}"))
            assert re.fullmatch(pattern, str(said)), f"{verdict} is not {said}: {record_of(sample).hex()}"
        counts["accepted" if verdict == "accepted" else "refused"] += 1
    return dict(counts)


def exhausted(files: list[bytes]) -> dict[str, int]:
    """Every single flipped bit and every truncation of each file must be refused by both. Raises AssertionError."""
    counts = {"files": len(files), "flips": 0, "truncations": 0}
    for data in files:
        assert Container.from_bytes(data).to_bytes()[:16] == data[:16]
        flips = (data[: i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1 :] for i in range(8 * len(data)))
        for key, damaged in (("flips", flips), ("truncations", (data[:n] for n in range(len(data))))):
            for bad in damaged:
                said = outcome(lambda bad=bad: Container.from_bytes(bad))
                with definition():
                    again = outcome(lambda bad=bad: Container.from_bytes(bad))
                assert isinstance(said, str), f"accepted: {bad.hex()}"
                assert said == again, bad.hex()
                counts[key] += 1
    return counts


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    255,
    65536,
    1 << 24,
    1 << 33,
    1 << 64,
    10**400,
    0.5,
    1e308,
    "",
    "bins",
    "top",
    "pursuit",
    "poisson",
    "independent",
    "heun",
    [],
    [[]],
    {},
    [1, 2, 3],
    [8, 64, 16],
    [[1, 0.5, 0.75, 3]],
    [[None, 1, 2, 1 << 24]],
    [[2, 0.5, 1, 60], [1, 0.25, 0.5, 7]],
]


def hostile_specification(rng: np.random.Generator) -> bytes:
    """The JSON of a good specification with some of its values, or some bytes of its text, replaced."""
    specs = [spec for spec, _, _ in golden_nbk.variants().values()]
    value = json.loads(specs[rng.integers(len(specs))].to_json())
    for _ in range(rng.integers(0, 4)):
        value[list(value)[rng.integers(len(value))]] = HOSTILE[rng.integers(len(HOSTILE))]
    text = bytearray(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
    if rng.random() < 0.2:
        for place in rng.integers(0, len(text), rng.integers(1, 4)):
            text[place] = int(rng.integers(256))
    return b"[" * 100_000 if rng.random() < 0.001 else bytes(text)


def specifications(count: int, rng: np.random.Generator, limit: int = 60) -> dict[str, Any]:
    """Files with specifications made by hand, right in hash and checksum, are read or refused by an error of ours. Raises
    AssertionError for another error, and for one that takes more than `limit` seconds."""
    counts, slowest = Counter(), 0.0
    for _ in range(count):
        text = hostile_specification(rng)
        size = rng.choice([1, 2, 7, 64, 500, 65535], 2)
        begin = time.perf_counter()
        try:
            with alarm(limit):
                counts[_read(text, int(size[0]), int(size[1]), rng)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {size}: {text[:3000]!r}") from error
        slowest = max(slowest, time.perf_counter() - begin)
    return {"inputs": count, "verdicts": dict(counts), "slowest_seconds": slowest}


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read(text: bytes, height: int, width: int, rng: np.random.Generator) -> str:
    """How a file with that specification, and a payload that fits it where one can be made, is met."""
    file = Container(hashlib.sha256(text).digest()[:8], height, width, rng.bytes(rng.integers(0, 99)), 0, text)
    try:
        spec = spec_of(Container.from_bytes(file.to_bytes()))
        assert spec is not None
        runs = token_runs(spec, height, width)
        small = sum(run.count for run in runs) < 100_000
        payload = bytes(-(-packed_bits(runs) // 8)) if small and rng.random() < 0.8 else file.payload
        unpack(payload, runs)
    except (FormatError, SpecError) as error:
        return type(error).__name__
    return "accepted"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of the harness")
    parser.add_argument("--sample", type=int, default=30_000, help="of them judged by Python too, and specifications")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    if container.native() is None:
        sys.exit("the C++ extension was not built: there is nothing to compare")
    rng, folder = np.random.default_rng(args.seed), Path(tempfile.mkdtemp())
    try:
        harness, files, dump = build(folder), folder / "corpus", folder / "dump"
        files.write_bytes(b"".join(map(record_of, corpus(rng))))
        result: dict[str, Any] = {"fuzz": fuzzed(harness, files, args.seed, args.inputs, args.processes)}
        print(result, flush=True)
        batch(harness, files, args.seed + 1, 0, args.sample, dump)
        result["compared"] = compared(records(dump.read_bytes()))
        print(result["compared"], flush=True)
    finally:
        shutil.rmtree(folder)
    golden = [path.read_bytes() for path in sorted(golden_nbk.FOLDER.glob("*.nbk"))]
    result["exhaustive"] = exhausted(golden + [data for _ in range(5) for data in variants(rng)])
    print(result["exhaustive"], flush=True)
    result["specifications"] = specifications(args.sample, rng)
    print(result["specifications"], flush=True)
    write(NAME, {**result, "speed": speeds(rng, 31)}, args.seed)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
