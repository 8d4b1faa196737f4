"""A seeded sample of bench/reliability/hostile.py: what files from strangers can do. Linux only: /proc is read."""

import os
import socket
import subprocess
import sys
import time

import pytest

from common import ROOT

pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("forks, and looks into /proc", allow_module_level=True)

from bench.reliability import hostile_kit
from bench.reliability.hostile_kit import Case, Command
from noisebook.cli import main as command_line


@pytest.mark.parametrize("count", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_hostile_inputs_of_all_kinds_run_nothing_and_are_refused_in_words(count):
    """In a process of its own, which forks: the threads of this one must not be in the children."""
    command = [sys.executable, "-m", "bench.reliability.hostile", "--count", str(count), "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.count(f"'inputs': {count}, ") == 10


def bad(place, what):
    """What a command must not do, one thing each."""
    if what == "opens":
        place.traps.file.read_text()
    if what == "writes":
        (place.root / "elsewhere").write_text("")
    if what == "socket.connect":
        socket.create_connection(("127.0.0.1", place.traps.port)).close()
    if what == "subprocess.Popen":
        subprocess.run(["gs", "x"], check=True)
    if what == "replaced or removed":
        (place.outputs / "keep.txt").write_text("other")
    if what == "half-written":
        (place.outputs / ".a.tmp").write_text("")
    if what == "control characters":
        print("\x1b[31mred")
    if what == "a traceback":
        print("Traceback (most recent call last):")
    if what == "exit code":
        raise RuntimeError("nobody caught it")
    if what == "s, ":
        time.sleep(0.3)
    if what == "MiB":
        bytearray(os.urandom(1 << 20) * 60)
    if what == "the process died":
        os.kill(os.getpid(), 9)
    return 0


FAULTS = (
    "opens",
    "writes",
    "socket.connect",
    "subprocess.Popen",
    "replaced or removed",
    "half-written",
    "control characters",
    "a traceback",
    "exit code",
    "s, ",
    "MiB",
    "the process died",
)


def test_every_kind_of_fault_is_seen(tmp_path, monkeypatch):
    with hostile_kit.place(tmp_path / "place") as place:
        place.base["own"] = {}
        monkeypatch.setattr(command_line, "main", lambda arguments: bad(place, arguments[1]))
        for fault in (*FAULTS, "nothing"):
            case = Case(True, [Command(["decode", fault], 0.2, 50.0)])
            (result,) = hostile_kit.run(place, lambda *_, case=case: case, [[1, 2, 3]])
            problems = [p for one in result["runs"] for p in one["problems"]]
            if fault == "nothing":
                assert not problems
            else:
                assert any(fault in problem for problem in problems), (fault, problems)
        assert (place.traps.file.with_name("contacts")).exists()
        assert place.traps.ran.exists()
