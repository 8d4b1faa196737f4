"""Kills at random times and at every step of a commit; a disk that is full at every step, and a small real one."""

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.reliability.faults_kit import (
    PHASES,
    Child,
    Ground,
    Hang,
    digest,
    faults_of,
    group_members,
    half_written,
    orphans,
    remove,
    wait_for,
)
from noisebook.datasets import store
from noisebook.runtime import atomic

ROUNDS = 40  # kills of one data set before it may finish


# ---- at random times ----------------------------------------------------------------------------------------------------
def random_kills(ground: Ground, trials: int, kills: int, seed: int, workers: tuple[int, ...] = (0, 0, 1)) -> dict[str, Any]:
    """Data sets that are killed again and again, resumed, and compared with one that was not: until there are as many
    trials and kills as asked for."""
    rng, wanted = random.Random(seed), digest(whole := ground.whole())
    begin = time.monotonic()
    remove(ground.whole(workers=1))
    seconds = {1: time.monotonic() - begin}
    begin = time.monotonic()
    remove(ground.whole())
    seconds[0] = time.monotonic() - begin
    remove(whole)
    out: dict[str, Any] = {
        "trials": 0,
        "kills": 0,
        "resumes": 0,
        "faults": [],
        "orphans": 0,
        "phases": dict.fromkeys(PHASES, 0),
        "victims": Counter(),
    }
    while out["trials"] < trials or out["kills"] < kills:
        count = workers[out["trials"] % len(workers)]
        output = ground.output()
        try:
            _killed_until_done(ground, output, count, seconds[min(count, 1)], rng, out)
            out["faults"] += faults_of(output, wanted)
        except Hang as error:
            out["faults"].append(f"hang: {error}")
        out["trials"] += 1
        remove(output)
    return out


def _killed_until_done(ground: Ground, output: Path, workers: int, whole: float, rng: random.Random, out: dict) -> None:
    for attempt in range(ROUNDS):
        child = Child(ground.arguments(output, "--resume", workers=workers))
        out["resumes"] += attempt > 0
        # a third anywhere, a third early (start-up and plan of a resumed run are short), a third about the end
        delay = (rng.uniform(0, 1.1), 0.4 * rng.random() ** 2, rng.gauss(0.85, 0.15))[attempt % 3] * whole
        pid, status = wait_for(child.pid, max(0.0, delay))
        if pid:  # it was done before
            child.code = os.waitstatus_to_exitcode(status)
            break
        victim = rng.choice(("group", "process", "worker")) if workers else "group"
        others = [p for p in group_members(child.pid) if p != child.pid]
        if victim == "worker" and others:  # a run survives that: nothing is resumed
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(others), signal.SIGKILL)
            out["victims"]["worker"] += 1
            out["kills"] += 1
            child.wait()
            break
        out["phases"][child.phase] += 1
        child.kill(group=victim != "process")
        out["victims"][victim if victim != "worker" else "group"] += 1
        out["kills"] += 1
        _count_orphans(child.pid, out)
    else:
        child = Child(ground.arguments(output, "--resume", workers=workers))
    if (code := child.wait()) != 3:
        out["faults"].append(f"exit code {code}: {child.errors()[-300:]}")
    _count_orphans(child.pid, out)


def _count_orphans(group: int, out: dict[str, Any]) -> None:
    left = orphans(group)
    out["orphans"] += len(left)
    out["faults"] += [f"{len(left)} processes are left"] if left else []


def command_kills(ground: Ground, kills: int, seed: int) -> dict[str, Any]:
    """The same with the real command, start of Python and torch included."""
    rng, wanted = random.Random(seed), digest(whole := ground.whole())
    remove(whole)
    begin = time.monotonic()
    output = ground.output()
    ground.command_line(output, workers=1).wait(300)
    seconds, out = time.monotonic() - begin, {"trials": 0, "kills": 0, "faults": [], "orphans": 0}
    out["faults"] += faults_of(output, wanted)
    while out["kills"] < kills:
        output, round = ground.output(), 0
        while True:
            process = ground.command_line(output, "--resume", workers=out["trials"] % 2)
            last = round == 8 or out["kills"] == kills
            try:
                code = process.wait(300 if last else rng.uniform(0.1, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                (os.kill if rng.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)
                process.wait()
                _count_orphans(process.pid, out)
                out["kills"], round = out["kills"] + 1, round + 1
                if last:
                    out["faults"].append("hang")
                    break
                continue
            if code != 3:
                out["faults"].append(f"exit code {code}")
            out["faults"] += faults_of(output, wanted)
            break
        out["trials"] += 1
        remove(output)
    return out


# ---- at every step ------------------------------------------------------------------------------------------------------
class Steps:
    """Counts the calls by which `write_bytes` changes the disk, over all threads of a child; at number `at` it calls
    `act`. The write itself is two steps: half of the bytes, and the rest."""

    NAMES = ("mkdir", "open", "fsync", "chmod", "replace", "unlink")

    def __init__(self, at: int, act: Callable[[], None], told: int):
        self.at, self.act, self.told = at, act, told  # `told`: a pipe that hears the name of the call
        self.count, self.inside = 0, threading.local()

    def step(self, name: str) -> None:
        if getattr(self.inside, "yes", False):
            self.count += 1
            if self.count - 1 == self.at:
                os.write(self.told, name.encode())
                self.act()

    def install(self) -> None:
        for name in self.NAMES[: None if self.act is die else -1]:  # a full disk lets files be removed
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        whole, named = atomic.write_bytes, tempfile.NamedTemporaryFile
        steps = self

        class Halves:
            def __init__(self, file: Any):
                self.file = file

            def __enter__(self) -> "Halves":
                return self

            def __exit__(self, *about: Any) -> None:
                self.file.__exit__(*about)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def write(self, data: bytes) -> None:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                steps.step("write")
                self.file.write(data[len(data) // 2 :])

        def write_bytes(path: Any, data: bytes) -> None:
            self.inside.yes = True
            try:
                whole(path, data)
            finally:
                self.inside.yes = False

        atomic.tempfile = type("Tempfile", (), {"NamedTemporaryFile": lambda **k: Halves(named(**k))})  # type: ignore
        store.write_bytes = write_bytes

    def _wrapped(self, name: str, there: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.step(name)
            return there(*args, **kwargs)

        return call


def every_step(
    ground: Ground, fault: str, only: Callable[[int], bool] = lambda _: True, limit: int = 5000
) -> dict[str, Any]:
    """A run that meets `fault` ("kill", "full") at step k of its writing, for every k there is (or those that `only`
    takes), is looked at, resumed, and compared."""
    wanted = digest(whole := ground.whole())
    remove(whole)
    out: dict[str, Any] = {"steps": 0, "tried": 0, "by_call": Counter(), "faults": []}
    for at in range(limit):
        if not only(at):
            out["steps"] = at + 1
            continue
        output = ground.output()
        reader, told = os.pipe()

        def prepare(at: int = at, told: int = told) -> None:
            Steps(at, die if fault == "kill" else full, told).install()

        child = Child(ground.arguments(output, "--resume"), prepare)
        os.close(told)
        code = child.wait()
        name = os.read(reader, 64).decode()
        os.close(reader)
        if not name:  # there are no more
            out["faults"] += faults_of(output, wanted)
            remove(output)
            break
        out["steps"], out["tried"] = at + 1, out["tried"] + 1
        out["by_call"][name] += 1
        out["faults"] += [f"step {at}, {name}: {x}" for x in _after(fault, child, code, output, name)]
        again = Child(ground.arguments(output, "--resume"))
        if (code := again.wait()) != 3:
            out["faults"].append(f"step {at}, {name}: resumed with exit code {code}: {again.errors()[-300:]}")
        else:
            out["faults"] += [f"step {at}, {name}: {x}" for x in faults_of(output, wanted)]
        remove(output)
    return out


def _after(fault: str, child: Child, code: int, output: Path, name: str) -> list[str]:
    """What is wrong right after the fault."""
    if fault == "kill":
        left = [x for x in half_written(output) if not x.endswith(".tmp")]  # the resumed run collects those
        return left + ([] if code == -signal.SIGKILL else [f"exit code {code}, not killed"])
    bad = half_written(output)
    message = child.message()
    if code != 1:
        bad.append(f"exit code {code}: {child.errors()[-300:]}")
    if len(message) != 1 or not message[0].startswith("noisebook: NoisebookError") or "No space left" not in message[0]:
        bad.append(f"said {message}")
    return bad


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- a small disk -------------------------------------------------------------------------------------------------------
def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small file system."""
    folder.mkdir(exist_ok=True)
    if not mount(folder, 64, "rw"):
        return False
    unmount(folder)
    return True


def mount(folder: Path, kib: int, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"{options},size={kib}k", "noisebook-faults", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def small_disks(ground: Ground, sizes: range) -> dict[str, Any]:
    """A real file system of that many KiB, which fills up; then it is made larger, and the run resumed."""
    wanted = digest(whole := ground.whole())
    remove(whole)
    disk = ground.folder / "disk"
    out: dict[str, Any] = {"sizes_kib": [sizes[0], sizes[-1]], "tried": 0, "filled": 0, "faults": []}
    for kib in sizes:
        disk.mkdir(exist_ok=True)
        if not mount(disk, kib, "rw"):
            raise OSError("a tmpfs cannot be mounted")
        try:
            output = disk / "out"
            child = Child(ground.arguments(output, "--resume"))
            code = child.wait()
            out["tried"] += 1
            if code != 3:
                out["filled"] += 1
                bad, message = half_written(output), child.message()
                if code != 1 or len(message) != 1 or "No space left" not in message[0]:
                    bad.append(f"exit code {code}, said {message}: {child.errors()[-300:]}")
                out["faults"] += [f"{kib} KiB: {x}" for x in bad]
                assert mount(disk, 4096, "remount,rw")
                child = Child(ground.arguments(output, "--resume"))
                if (code := child.wait()) != 3:
                    out["faults"].append(f"{kib} KiB: resumed with exit code {code}: {child.errors()[-300:]}")
                    continue
            out["faults"] += [f"{kib} KiB: {x}" for x in faults_of(output, wanted)]
        finally:
            unmount(disk)
    return out


def small_files(ground: Ground, sizes: range) -> dict[str, Any]:
    """The same where nothing can be mounted: no file may be larger than that many bytes (RLIMIT_FSIZE)."""
    wanted = digest(whole := ground.whole())
    remove(whole)
    out: dict[str, Any] = {"sizes_bytes": [sizes[0], sizes[-1]], "tried": 0, "filled": 0, "faults": []}
    for size in sizes:
        output = ground.output()

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        child = Child(ground.arguments(output, "--resume"), limit)
        code = child.wait()
        out["tried"] += 1
        if code != 3:
            out["filled"] += 1
            bad = half_written(output)
            out["faults"] += [f"{size} bytes: {x}" for x in bad + ([] if code == 1 else [f"exit code {code}"])]
            child = Child(ground.arguments(output, "--resume"))
            child.wait()
        out["faults"] += [f"{size} bytes: {x}" for x in faults_of(output, wanted)]
        remove(output)
    return out
