"""A small data set, and runs of `noisebook tokenize` on it that are killed, starved and fed with damage.

A run is a forked child of this process, which has torch imported and its arguments parsed in milliseconds: a kill costs
what the run itself takes. `Ground.command_line` starts the real command.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing import RLock, forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from bench.lib.images import smooth
from bench.lib.record import ROOT
from noisebook import backbones
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.datasets import ledger, run
from noisebook.datasets import shard as tokenizer
from noisebook.datasets import verify as check
from noisebook.datasets.plan import FILES, ITEMS, PLAN, Plan
from noisebook.datasets.store import Store
from noisebook.datasets.table import read_shard
from noisebook.errors import NoisebookError
from noisebook.images.io import png_bytes

KNOBS = [
    word
    for option in (
        "--steps 4",
        "--budget 8",
        "--budget-last 8",
        "--vocab-size 256",
        "--scale-pixels 0",
        "--start-budget 0",
        "--shard-size 8",
        "--batch-size 4",
    )
    for word in option.split()
]
LIMIT = 120.0  # seconds after which a run hangs
PHASES = ("start", "plan", "encode", "commit", "end")
VARYING = {"finished", "seconds", "images_per_s", "host", "process", "threads"}  # of a ledger entry, from run to run


class Hang(Exception):
    """A run that did not end in time."""


def tiny_backbone(path: Path) -> str:
    """A network of a few thousand weights, the same each time."""
    torch.manual_seed(0)
    net = ConvDenoiser(backbones.load("gaussian-prior"), widths=(8, 8), blocks=1, embedding=8)
    write_checkpoint(path, "convnet", net.config, checkpoint_tensors(net))
    return str(path)


class Ground:
    """A folder with a backbone, an input of `count` pictures, of which every ninth is bad, and outputs."""

    def __init__(self, folder: Path, rng: np.random.Generator, count: int = 29):
        self.folder, self.rng, self.made = folder, rng, 0
        self.input = folder / "in"
        self.input.mkdir(parents=True)
        self.backbone = tiny_backbone(folder / "tiny.safetensors")
        for i in range(count):
            good = png_bytes(smooth(rng))
            (self.input / f"{i:03d}.png").write_bytes(good if i % 9 != 4 else (b"", b"no picture", good[:60])[i // 9 % 3])

    def output(self) -> Path:
        """A new place, not made yet."""
        self.made += 1
        return self.folder / f"out-{self.made}"

    def arguments(self, output: Path, *more: str, source: Path | None = None, workers: int = 0) -> list[str]:
        return [
            "tokenize",
            str(source or self.input),
            "-o",
            str(output),
            "--backbone",
            self.backbone,
            *KNOBS,
            "--dtype",
            "float32",
            "--workers",
            str(workers),
            *more,
        ]

    def command_line(self, output: Path, *more: str, workers: int = 0) -> subprocess.Popen:
        """The real command, in a process group of its own."""
        path = os.pathsep.join([str(ROOT / "engine"), str(ROOT / "kernels")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
        command = [sys.executable, "-m", "noisebook", *self.arguments(output, *more, workers=workers)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, env=environment, start_new_session=True, **quiet)

    def whole(self, *more: str, source: Path | None = None, workers: int = 0, code: int | None = 3) -> Path:
        """An uninterrupted run; where it lies."""
        output = self.output()
        child = Child(self.arguments(output, *more, source=source, workers=workers))
        found = child.wait()
        assert code in (None, found), (found, child.errors())
        return output


class Child:
    """A run in a forked child, the leader of a process group. `prepare` is called in it first."""

    def __init__(self, arguments: list[str], prepare: Callable[[], None] | None = None):
        self._phase = mmap.mmap(-1, 1)  # shared: what it was doing when it was killed
        self.log = Path(tempfile.mkstemp(prefix="noisebook-faults-", suffix=".log")[1])
        sys.stdout.flush()
        TqdmDefaultWriteLock.mp_lock = RLock()  # a semaphore: a child before this one may have been killed with it in hand
        tqdm.set_lock(TqdmDefaultWriteLock())
        self.begun, self.code = time.monotonic(), None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, prepare)

    def _run(self, arguments: list[str], prepare: Callable[[], None] | None) -> None:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to Ctrl-C
            handle = os.open(self.log, os.O_WRONLY | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
            sys.modules["__main__"] = types.ModuleType("__main__")  # workers must not import the bench
            starter = forkserver._forkserver  # type: ignore[attr-defined]
            starter._forkserver_pid = starter._forkserver_address = starter._forkserver_alive_fd = None  # the parent's
            self._mark(run, "make_plan", 1)
            self._mark(tokenizer.Tokenizer, "_encode", 2)
            self._mark(tokenizer.Tokenizer, "_commit", 3)
            self._mark(run, "summary", 4)
            if prepare is not None:
                prepare()
            from noisebook.cli.main import main

            code = main(arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _mark(self, place: Any, name: str, phase: int) -> None:
        there = getattr(place, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            self._phase[0] = phase
            return there(*args, **kwargs)

        setattr(place, name, marked)

    @property
    def phase(self) -> str:
        return PHASES[self._phase[0]]

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code, negative for a signal. Raises Hang, having killed it, where it does not end in `limit` seconds."""
        if self.code is None:
            pid, status = wait_for(self.pid, limit)
            if pid == 0:
                self.kill()
                raise Hang(f"no end after {limit:g} s, in phase {self.phase}: {self.errors()[-500:]}")
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self, group: bool = True) -> None:
        """SIGKILL to it, or to it and its workers."""
        for send in (os.killpg, os.kill) if group else (os.kill,):  # it may be no leader of a group yet
            with contextlib.suppress(ProcessLookupError):
                send(self.pid, signal.SIGKILL)
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def errors(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def message(self) -> list[str]:
        """The lines of its typed error, those of a traceback included."""
        lines = self.errors().splitlines()
        return [x for x in lines if x.startswith(("noisebook: ", "Traceback", "Exception"))]

    def __del__(self) -> None:
        if getattr(self, "pid", 0):
            self.log.unlink(missing_ok=True)


def wait_for(pid: int, limit: float) -> tuple[int, int]:
    """waitpid with a limit in seconds; (0, 0) where that is over."""
    end, pause = time.monotonic() + limit, 0.001
    while True:
        found = os.waitpid(pid, os.WNOHANG)
        if found[0] or time.monotonic() > end:
            return found
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def group_members(group: int) -> list[int]:
    """Living processes of a process group (of Linux's /proc; zombies are none)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(pgrp) == group and state != "Z":
                    found.append(int(entry.name))
    return found


def orphans(group: int, patience: float = 20.0) -> list[int]:
    """What is still alive of a group after a while."""
    end = time.monotonic() + patience
    while (left := group_members(group)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


# ---- what a data set is -------------------------------------------------------------------------------------------------
def digest(output: Path) -> str:
    """SHA-256 over the plan, all shard files, and ledger entries less times, host and process."""
    found, store = hashlib.sha256(), Store(output)
    for name in (PLAN, ITEMS, FILES, *(f"{ledger.SHARDS}/{n}" for n in store.names(ledger.SHARDS))):
        found.update(name.encode() + hashlib.sha256((output / name).read_bytes()).digest())
    for name in store.names(ledger.LEDGER):
        entry = ledger.read_ledger(store, int(name.split(".")[0]))
        assert entry is not None
        about = {k: v for k, v in entry.items() if k not in VARYING}
        found.update(json.dumps(about, sort_keys=True).encode())
    return found.hexdigest()


def strays(output: Path) -> list[str]:
    return sorted(p.name for p in output.rglob("*.tmp"))


def half_written(output: Path) -> list[str]:
    """What should never be: temporary files, and files of a data set that are there but not whole. Shards that no entry
    tells of are not yet part of it; their pages must be whole."""
    if not output.exists():
        return []
    bad, store = strays(output), Store(output)
    try:
        plan = Plan.load(store)
        for name in store.names(ledger.SHARDS):
            read_shard(store.read(f"{ledger.SHARDS}/{name}") or b"", name)
        for shard in range(plan.shards if plan else 0):
            if ledger.read_ledger(store, shard) and ledger.state_of(store, shard, plan.hash)[0] != ledger.DONE:  # type: ignore
                bad.append(ledger.shard_name(shard))
    except NoisebookError as error:
        bad.append(str(error))
    return bad


def faults_of(output: Path, wanted: str) -> list[str]:
    """Why a finished data set is not the one of an uninterrupted run; empty where it is."""
    try:
        found = check.check(str(output))
    except NoisebookError as error:
        return [str(error)]
    bad = [problem["error"] for problem in found["problems"]]
    bad += [f"stray {name}" for name in strays(output)]
    if not bad and digest(output) != wanted:
        bad.append("other bytes than without interruption")
    return bad


def remove(output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)


@contextlib.contextmanager
def ground(seed: int, count: int = 29) -> Iterator[Ground]:
    """A Ground in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="noisebook-faults-") as folder:
        yield Ground(Path(folder), np.random.default_rng(seed), count)
