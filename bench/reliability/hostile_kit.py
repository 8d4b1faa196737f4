"""A place for hostile inputs, and the real commands on them in forked children that are watched.

A child is forked for a few inputs at a time, because to start Python and torch for each would take hours. It calls
`noisebook.cli.main.main` with the arguments of a user. An audit hook sees what Python opens, starts, contacts, renames and
removes; the peak of resident memory is read from /proc after it was reset. Linux only.
"""

import contextlib
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib.record import ROOT
from bench.reliability.hostile_values import Rng, Traps

MIB = 1 << 20
GROUP = 16  # inputs of one child
PATIENCE = 90.0  # seconds without a word after which a child hangs
CODES = set(range(8))  # of noisebook.errors, and 0 and 1; 70 would be a fault of noisebook
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
CONTACTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind", "urllib.Request"}
CHANGES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1,
           "os.truncate": 1, "shutil.rmtree": 1, "os.utime": 1, "os.chown": 1}  # fmt: skip
SYSTEM = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime",
          "/etc/mime.types", "/etc/ssl", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/apache2", "/etc/httpd")  # fmt: skip


@dataclass
class Command:
    """Arguments of `noisebook`, and what they may cost: seconds, and MiB of resident memory, the interpreter's included."""

    arguments: list[str]
    seconds: float
    mib: float


@dataclass
class Case:
    """A hostile input that lies in the inputs of a `Place`. `passes`: whether checksums and the first parser take it."""

    passes: bool
    commands: list[Command]
    note: str = ""


Maker = Callable[["Place", Rng], Case]


@dataclass
class Place:
    """A folder with inputs, outputs, and traps that lie beside them."""

    root: Path
    traps: Traps
    base: dict[str, Any] = field(default_factory=dict)  # what a kind makes once, before any child

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def clean(self) -> None:
        for folder in (self.inputs, self.outputs):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        (self.outputs / "keep.txt").write_text("of the user")


def serve(folder: Path) -> tuple[int, int]:
    """A server on loopback that answers nothing and writes a line for each contact: (its port, its process)."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    process = os.fork()
    if process:
        listening.close()
        return port, process
    while True:
        connection, _ = listening.accept()
        with open(folder / "contacts", "a") as f:
            f.write("contact\n")
        connection.close()


@contextlib.contextmanager
def place(root: Path) -> Iterator[Place]:
    """A new place with a server that is contacted by hostile names, and a `gs` on the PATH that says when it is run."""
    traps = root / "traps"
    traps.mkdir(parents=True)
    (traps / "secret.txt").write_text("nobody may read this")
    (root / "bin").mkdir()
    program = root / "bin/gs"
    program.write_text(f"#!/bin/sh\ntouch {traps}/ran\n")
    program.chmod(0o755)
    port, server = serve(traps)
    old = dict(os.environ)
    os.environ |= {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_TOKEN": "x",
    }
    try:
        yield Place(root, Traps(traps / "secret.txt", port, traps / "ran"))
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        os.environ.clear()
        os.environ.update(old)


# ---- what is watched ----------------------------------------------------------------------------------------------------
def read_only() -> tuple[str, ...]:
    """Folders of the interpreter, its packages and this checkout."""
    paths = {sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"], str(ROOT / "engine"), str(ROOT / "kernels")}
    return (*SYSTEM, *(os.path.realpath(p) for p in paths), *paths)


class Watch:
    """An audit hook: what is done outside of inputs and outputs while `on`."""

    def __init__(self, place: Place):
        self.on, self.problems = False, []
        self.readable = (*read_only(), str(place.inputs), str(place.outputs))
        self.writable = str(place.outputs)

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        self.on = False  # what this does itself is no event
        try:
            self._look(event, arguments)
        finally:
            self.on = True

    def _look(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not within(path, (self.writable, "/dev/null") if writes else self.readable):
                self.problems.append(f"{'writes' if writes else 'opens'} {os.fsdecode(path)[:200]!r}")
        elif event in STARTS or event in CONTACTS:
            self.problems.append(f"{event} {str(arguments)[:200]}")
        elif event == "pickle.find_class":
            self.problems.append(f"unpickles {arguments}")
        elif event in ("ctypes.dlopen", "import") and any(".so" in str(a) or "/" in str(a) for a in arguments[:2]):
            name = next((str(a) for a in arguments[:2] if a and "/" in str(a)), "")
            if name and not within(name, self.readable[:-2]):
                self.problems.append(f"{event} {name[:200]}")
        elif event in CHANGES:
            for path in arguments[: CHANGES[event]]:
                if isinstance(path, str | bytes | os.PathLike) and not within(path, (self.writable,)):
                    self.problems.append(f"{event} {os.fsdecode(path)[:200]!r}")


def within(path: Any, folders: tuple[str, ...]) -> bool:
    name = os.path.abspath(os.fsdecode(path))
    return any(name == folder or name.startswith(folder.rstrip("/") + "/") for folder in folders)


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every file below a folder, with what changes when it is written or replaced."""
    out = {}
    for base, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                info = os.lstat(os.path.join(base, name))
                out[os.path.join(base, name)] = (info.st_ino, info.st_size, info.st_mtime_ns)
    return out


def memory() -> tuple[float, float]:
    """(resident now, its peak since the last reset) of this process, MiB."""
    found = {}
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(("VmRSS", "VmHWM")):
                found[line[:5]] = int(line.split()[1]) / 1024
    return found["VmRSS"], found["VmHWM"]


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def obeyed(text: str) -> list[str]:
    """Characters that a terminal, or a reader of lines, would obey."""
    return sorted({repr(c) for c in text if c not in "\n\r\t" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")})


def own_cost(arguments: list[str]) -> dict[str, float]:
    """Seconds and MiB of the command in a process of its own: what a forked child has paid already."""
    code = (  # not the peak that wait4 gives: that is this process's own, until exec
        "import sys; from noisebook.cli.main import main; code = main(sys.argv[1:]); "
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "engine"), str(ROOT / "kernels")])}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return {"seconds": time.monotonic() - begin, "mib": int(done.stderr.split()[-2]) / 1024}


# ---- a child ------------------------------------------------------------------------------------------------------------
def watched(place: Place, watch: Watch, command: Command, log: Path) -> dict[str, Any]:
    """Runs one command in this process; what came of it."""
    from noisebook.cli.main import main

    before = {**snapshot(place.inputs), **snapshot(place.outputs), **snapshot(place.traps.file.parent)}
    os.truncate(1, 0)
    os.lseek(1, 0, os.SEEK_SET)
    reset_peak()
    start, begin = memory()[0], time.monotonic()
    watch.problems, watch.on = [], True
    died = ""
    try:
        code = main(command.arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        code, died = -1, f"{type(error).__name__}: {str(error)[:300]}"
    watch.on = False
    own = place.base["own"].get(command.arguments[0], {"seconds": 0.0, "mib": 0.0})
    seconds, peak = time.monotonic() - begin + own["seconds"], memory()[1] - start + own["mib"]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    text = log.read_text(encoding="utf-8", errors="surrogateescape")
    after = snapshot(place.inputs) | snapshot(place.outputs) | snapshot(place.traps.file.parent)
    problems = list(watch.problems)
    if died or code not in CODES:
        problems.append(f"exit code {code}: {died or text.strip()[-300:]}")
    if "Traceback" in text:
        problems.append(f"a traceback: {text.strip()[-300:]}")
    if found := obeyed(text):
        problems.append(f"control characters {', '.join(found[:5])}")
    problems += [f"replaced or removed {name}" for name, was in before.items() if after.get(name) != was]
    new, traps = after.keys() - before.keys(), str(place.traps.file.parent)
    problems += [f"left in the traps: {name}" for name in new if traps in name]
    problems += [f"half-written {name}" for name in new if name.endswith(".tmp")]
    for page in new:
        if page.endswith(".html") and (found := obeyed(Path(page).read_text(encoding="utf-8", errors="surrogateescape"))):
            problems.append(f"control characters in the page: {', '.join(found[:5])}")
    if seconds > command.seconds:
        problems.append(f"{seconds:.1f} s, {command.seconds:g} are allowed")
    if peak > command.mib:
        problems.append(f"{peak:.0f} MiB, {command.mib:g} are allowed")
    return {"verb": command.arguments[0], "code": code, "seconds": seconds, "mib": peak, "problems": problems}


def child(place: Place, maker: Maker, seeds: list[list[int]], answers: int) -> None:
    """Makes and runs the inputs of these seeds; a line of JSON when one begins and one for what came of it."""
    place.clean()
    log = place.root / f"log-{os.getpid()}"
    handle = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), "utf-8") for n in (1, 2))
    os.set_inheritable(answers, False)
    os.chdir(place.outputs)
    watch = Watch(place)
    sys.addaudithook(watch.hook)

    def tell(**what: Any) -> None:
        os.write(answers, (json.dumps(what) + "\n").encode())

    for seed in seeds:
        place.clean()
        os.chdir(place.outputs)
        case = maker(place, np.random.default_rng(seed))
        tell(begin=seed, note=case.note, arguments=[c.arguments for c in case.commands])
        runs = [watched(place, watch, command, log) for command in case.commands]
        tell(seed=seed, passes=case.passes, runs=runs, note=case.note)
    log.unlink()


def run(place: Place, maker: Maker, seeds: list[list[int]]) -> list[dict[str, Any]]:
    """What came of the inputs of these seeds, each in a forked child with others; a child that dies or hangs is the fault of
    the input at work, and a new one goes on after it."""
    out: list[dict[str, Any]] = []
    while seeds:
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            code = 1
            try:
                os.close(reading)
                child(place, maker, seeds[:GROUP], writing)
                code = 0
            except BaseException as error:
                os.write(writing, (json.dumps({"broken": f"{type(error).__name__}: {error}"}) + "\n").encode())
            finally:
                os._exit(code)
        os.close(writing)
        found, begun, why = _heard(reading, process)
        out += found
        done = len(found)
        if why:
            if begun is None:
                raise RuntimeError(f"the generator itself failed at {seeds[done]}: {why}")
            problem = {"verb": "?", "code": -1, "seconds": 0.0, "mib": 0.0, "problems": [why]}
            out.append({"seed": begun["begin"], "passes": True, "runs": [problem], "note": str(begun["arguments"])[:500]})
            done += 1
        seeds = seeds[min(done, GROUP) :]
    return out


def _heard(reading: int, process: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None, str]:
    """(answers of a child, the input at work when it ended, why it ended if that was not its end)."""
    found, begun, rest, why = [], None, b"", ""
    while True:
        if not select.select([reading], [], [], PATIENCE)[0]:
            os.kill(process, signal.SIGKILL)
            why = f"nothing for {PATIENCE:g} s"
            break
        data = os.read(reading, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in map(json.loads, lines):
            if "broken" in line:
                why = line["broken"]
            elif "begin" in line:
                begun = line
            else:
                found.append(line)
                begun = None
    os.close(reading)
    status = os.waitpid(process, 0)[1]
    return found, begun, why or (f"the process died: {status}" if status else "")
