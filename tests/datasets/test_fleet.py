"""Data sets made by several devices of one machine: the bytes of one process, whatever becomes of the children."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("forks, and looks into /proc", allow_module_level=True)

from bench.reliability.faults_kit import Child, Ground, digest, orphans
from bench.reliability.faults_ray import _recipe, events
from noisebook.cli.main import main
from noisebook.codec.load import load
from noisebook.datasets import CodecRecipe, Rank, decoding, fleet, memory, tokenize
from noisebook.datasets import run as runs
from noisebook.datasets.ledger import POISONED, read_ledger
from noisebook.datasets.memory import Share
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.store import Store
from noisebook.errors import BackboneError, DatasetError, ImageError, SpecError
from noisebook.runtime.devices import every_gpu, named_devices
from noisebook.runtime.limits import Limits

SIZES = {"shard_size": 4, "batch_size": 2, "resize": 16}
HERE = os.getpid()
NETWORK: list[str] = []  # of the codecs that the functions below make


@pytest.fixture
def ground(tmp_path: Path, fresh: np.random.Generator, monkeypatch) -> Ground:
    torch.set_num_threads(1)
    monkeypatch.setattr(fleet, "METHOD", "fork")  # children in milliseconds: they need not import torch
    made = Ground(tmp_path / "ground", fresh, 20)
    NETWORK[:] = [made.backbone]
    return made


@pytest.fixture
def recipe(ground) -> CodecRecipe:
    return CodecRecipe(backbone=ground.backbone, changes=_recipe(), dtype="float32")


def plain(device, size):
    return load(backbone=NETWORK[0], device=device, dtype="float32", **_recipe())


def wrong(device, size):
    if os.getpid() != HERE:
        raise BackboneError("not in this process")
    return plain(device, size)


def odd(device, size):
    if os.getpid() != HERE:
        raise ZeroDivisionError("of nobody's making")
    return plain(device, size)


def short_lived(device, size):
    if device != "cpu":
        os._exit(3)
    return plain("cpu", size)


def stillborn(device, size):
    return plain(device, size) if os.getpid() == HERE else os._exit(3)


def warned(device, size):
    import warnings

    warnings.warn("not as it should be", RuntimeWarning, stacklevel=1)
    return plain(device, size)


def until(there, process=None, patience: float = 120.0) -> None:
    """Waits for `there()`, as long as the process runs."""
    end = time.monotonic() + patience
    while not there():
        assert process is None or process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.02)


def deadly(ground: Ground, monkeypatch, times: int) -> None:
    """The second picture kills the process that decodes it, as often as that."""
    bad, marks = ground.input / "001.png", ground.folder / "marks"
    marks.mkdir()
    data, decode = bad.read_bytes(), decoding.decode

    def deciding(given, *how):
        count = len(list(marks.iterdir()))
        if given == data and count < times and os.getpid() != HERE:
            (marks / str(count)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(given, *how)

    monkeypatch.setattr(decoding, "decode", deciding)


def test_two_children_make_the_bytes_of_one_process(ground, recipe, capfd):
    """Of the command, the function and a list; plan, shards and ledgers, in common lines of progress."""
    wanted = ground.output()
    tokenize(ground.input, wanted, codec=recipe, **SIZES)
    lines: list[str] = []
    for codec, device in ((recipe, ["cpu", "cpu"]), (CodecRecipe(**vars(recipe) | {"device": "cpu,cpu"}), None)):
        output = ground.output()
        counts = tokenize(ground.input, output, codec=codec, device=device, log=lines.append, **SIZES)
        assert (counts["n_in"], counts["shards"]) == (20, 5)
        assert digest(output) == digest(wanted)
        actors = events(output, "actor")
        assert 1 <= len({actor["process"] for actor in actors} - {HERE}) == len(actors) <= 2
        assert {read_ledger(Store(output), shard)["process"] for shard in range(5)} <= {a["process"] for a in actors}
        assert sum(event["n_in"] for event in events(output, "shard")) == 20
    assert lines.count("2 devices: cpu, cpu") == 2
    output, options = ground.output(), ("--resize", "16", "--shard-size", "4", "--batch-size", "2")
    capfd.readouterr()
    assert main(ground.arguments(output, "--device", "cpu,cpu", *options)) == 3  # two pictures are bad
    told = [line for line in capfd.readouterr().err.splitlines() if line.endswith("images/s")]
    assert all(" of 5 shards, " in line and " of 20 images, " in line for line in told)  # of all children together
    assert told[-1].startswith("5 of 5 shards, 20 of 20 images, ")
    assert sorted(p.read_bytes() for p in (output / "shards").iterdir()) == sorted(
        p.read_bytes() for p in (wanted / "shards").iterdir()
    )


def test_a_function_makes_a_codec_in_each_child(ground):
    outputs = [ground.output(), ground.output()]
    for output, device in zip(outputs, ("cpu", "cpu,cpu"), strict=True):
        tokenize(ground.input, output, codec=plain, device=device, **SIZES)
    assert digest(outputs[0]) == digest(outputs[1])


def test_what_a_dead_child_had_is_made_by_others(ground, recipe, monkeypatch):
    wanted, output, lines = ground.output(), ground.output(), []
    tokenize(ground.input, wanted, codec=recipe, **SIZES)
    deadly(ground, monkeypatch, times=2)
    tokenize(ground.input, output, codec=recipe, device="cpu,cpu", log=lines.append, **SIZES)
    assert digest(output) == digest(wanted)
    dead = [line for line in lines if line.startswith("the process on cpu died: SIGKILL; shards 0")]
    assert len(dead) == 2
    assert "tried again" in dead[0]
    assert [event["shard"] for event in events(output, "retry")].count(0) == 2
    assert not list(output.rglob("*.tmp"))


def test_a_shard_that_kills_its_children_is_poisoned_and_the_run_says_so(ground, recipe, monkeypatch, capsys):
    wanted, output = ground.output(), ground.output()
    tokenize(ground.input, wanted, codec=recipe, **SIZES)
    deadly(ground, monkeypatch, times=99)
    options = ("--resize", "16", "--shard-size", "4", "--batch-size", "2", "--device", "cpu,cpu", "--retries", "1")
    assert main(ground.arguments(output, *options)) == 3
    told = capsys.readouterr()
    assert "shard 0 is given up: its process died 2 times: SIGKILL" in told.err
    assert "poisoned" in told.out
    entry = read_ledger(Store(output), 0)
    assert (entry["status"], entry["n_failed"]) == (POISONED, 4)
    assert "its process died 2 times" in entry["failed"][0]["message"]
    monkeypatch.undo()
    counts = tokenize(ground.input, output, codec=recipe, resume=True, **SIZES)
    assert counts["failed_by_code"].get("poisoned") is None
    assert digest(output) == digest(wanted)


def test_too_many_failures_end_the_run(ground, recipe):
    with pytest.raises(ImageError, match="more than --max-errors 0"):
        tokenize(ground.input, ground.output(), codec=recipe, device="cpu,cpu", max_errors=0, **SIZES)


def test_what_is_wrong_for_all_is_an_error_and_poisons_nothing(ground):
    output = ground.output()
    with pytest.raises(BackboneError, match="not in this process"):
        tokenize(ground.input, output, codec=wrong, device="cpu,cpu", **SIZES)
    with pytest.raises(ZeroDivisionError) as error:
        tokenize(ground.input, output, codec=odd, device="cpu,cpu", resume=True, **SIZES)
    assert "in odd" in error.value.__notes__[0]
    assert not Store(output).names("ledger")


def test_a_device_on_which_children_die_is_left_out(ground):
    wanted, output, lines = ground.output(), ground.output(), []
    tokenize(ground.input, wanted, codec=plain, **SIZES)
    tokenize(ground.input, output, codec=short_lived, device="cpu,cpu:0", log=lines.append, **SIZES)
    assert digest(output) == digest(wanted)
    with pytest.raises(DatasetError, match="3 processes in a row died on cpu before they had a codec: exit code 3"):
        tokenize(ground.input, ground.output(), codec=stillborn, device="cpu,cpu", log=lines.append, **SIZES)
    assert "cpu is left out: 3 processes in a row died there" in lines


def test_a_child_that_does_nothing_counts_as_dead(ground, recipe, monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE", 1.5)
    monkeypatch.setattr(fleet, "LOOK", 0.05)
    begun, run = ground.folder / "begun", Tokenizer.run

    def stuck(self, shards):
        if not begun.exists():
            begun.touch()
            next(iter(shards))
            time.sleep(60)
        run(self, shards)

    monkeypatch.setattr(Tokenizer, "run", stuck)
    lines: list[str] = []
    assert tokenize(ground.input, ground.output(), codec=recipe, device="cpu,cpu", log=lines.append, **SIZES)["shards"] == 5
    assert any(line.startswith("the process on cpu died: it has done nothing for 1.5 s; shards ") for line in lines)


def test_warnings_of_children_are_lines_and_said_once(ground):
    lines: list[str] = []
    with pytest.warns(RuntimeWarning, match="not as it should be"):
        tokenize(ground.input, ground.output(), codec=warned, device="cpu,cpu", log=lines.append, **SIZES)
    assert lines.count("warning: not as it should be") == 1


def test_ctrl_c_ends_all_of_them(ground, monkeypatch):
    """A terminal sends it to children, too."""
    output = ground.output()
    slow = lambda: setattr(Tokenizer, "_encode", lambda *_: time.sleep(60))  # noqa: E731
    child = Child(ground.arguments(output, "--device", "cpu,cpu"), slow)
    until(lambda: events(output, "actor"))
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait() == 130, child.errors()
    assert child.message() == ["noisebook: stopped"]
    assert not orphans(child.pid)


def test_sigterm_leaves_no_orphan_and_a_run_that_can_be_resumed(ground):
    """Of a script, whose children are processes of their own from the beginning, and busy."""
    output, script = ground.output(), ground.folder / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), ground.backbone, str(ground.input), str(output), json.dumps(_recipe())]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    try:
        until(lambda: list(ground.folder.glob("busy-*")) and len(events(output, "actor")) == 2, process)
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        assert not orphans(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    whole = ground.output()
    tokenize(ground.input, output, codec=plain, device="cpu,cpu", resume=True, **SIZES)
    tokenize(ground.input, whole, codec=plain, **SIZES)
    assert digest(output) == digest(whole)


SCRIPT = """
import json, os, pathlib, sys, time
from noisebook.codec.load import load
from noisebook.datasets import tokenize

def busy(*_):
    pathlib.Path(__file__).with_name(f"busy-{os.getpid()}").touch()
    time.sleep(60)

def make(device, size):
    codec = load(backbone=sys.argv[1], device=device, dtype="float32", **json.loads(sys.argv[4]))
    codec.encode = busy
    return codec

if __name__ == "__main__":
    tokenize(sys.argv[2], sys.argv[3], codec=make, device="cpu,cpu", resize=16, shard_size=4, batch_size=2, workers=2)
"""


def test_what_may_have_killed_a_child_is_made_by_itself_and_elsewhere():
    crew = fleet.Fleet(None, range(4), None, ["cpu"] * 2, None, 2, print, 9)  # type: ignore[arg-type]
    here, there = crew.seats
    here.process = there.process = object()
    assert crew._next_for(here) == 0
    crew.waiting.popleft()
    here.shards = {0}
    assert crew._next_for(here) == 1  # it works ahead
    crew.alone, crew.waiting = {0, 1, 2}, type(crew.waiting)([1, 2])
    assert crew._next_for(here) is None  # it has what may kill it
    here.shards = {3}
    assert crew._next_for(here) is None  # it has another, which would be lost with it
    here.shards, crew.died_on = set(), {1: here.number, 2: there.number}
    assert (crew._next_for(here), crew._next_for(there)) == (2, 1)
    there.process = None
    assert crew._next_for(here) == 1  # there is nobody else


def test_what_several_devices_cannot_do_is_refused_in_words(ground, recipe, tmp_path):
    def refused(message, device="cpu,cpu", codec=recipe, **options):
        with pytest.raises(SpecError, match=message):
            tokenize(ground.input, tmp_path / "none", codec=codec, device=device, **options)
        assert not (tmp_path / "none/plan.json").exists()

    refused("live codec stays in its process: for several devices", codec=plain("cpu", None))
    refused("function that makes the codec cannot go to the processes of 2 devices", codec=lambda *_: None)
    refused("rank 0 of 2, and a rank works on one device, not 2", rank=Rank(0, 2))
    refused("give their kind only", engine="ray")
    refused("devices of one kind make a data set, not cpu and cuda", "cpu,cuda:0")
    refused("which GPUs", "cuda:0,cuda")
    refused("empty name", "cpu,")
    refused("empty name", [])
    refused("there are 0 GPUs", "cuda:0,cuda:1") if not torch.cuda.is_available() else None
    refused("cannot be used", "nonsense:0,nonsense:1")
    refused("--retries must be at least 0", retries=-1)


def test_cuda_is_every_gpu_of_a_lone_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for name in ("LOCAL_RANK", *("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")):
        monkeypatch.delenv(name, raising=False)
    recipe = CodecRecipe(device="cuda")
    assert runs._on_devices(recipe, None, Rank())[1] == ["cuda:0", "cuda:1", "cuda:2"]
    assert runs._on_devices(recipe, "cuda:1", Rank())[1] == ["cuda:1"]
    assert runs._on_devices(recipe, "cuda:2, cuda:0", Rank())[1] == ["cuda:2", "cuda:0"]
    assert runs._on_devices(recipe, None, Rank(1, 2))[1] == ["cuda"]
    assert runs._on_devices("photo", None, Rank())[1] == ["cpu"]
    assert runs._on_devices(recipe, None, None)[1] == ["cuda"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs._on_devices(recipe, None, Rank())[1] == ["cuda:1"]
    with pytest.raises(SpecError, match="there are 3 GPUs"):
        every_gpu(["cuda:0", "cuda:3"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert every_gpu(named_devices("cuda")) == ["cuda"]  # and so no child, as ever


def test_workers_and_memory_are_shared_out(ground, recipe, tmp_path):
    assert [fleet.shared_out(count, 3) for count in (0, 1, 3, 8)] == [[0] * 3, [1] * 3, [1] * 3, [3, 3, 2]]
    limits = Limits(memory=1 << 30)
    assert Share(2).limits(limits).memory == 1 << 29
    assert Share().limits(limits) is limits
    (tmp_path / "turn").touch()
    share, inside, most = Share(2, str(tmp_path / "turn")), [], []
    large = (1, 3, 1024, 1024)
    assert memory.together(large, "cpu") > 1 << 29

    def code():
        with share.turn(large, "cpu", limits):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=code) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    with Share(2, "nowhere").turn((2, 3, 16, 16), "cpu", limits):  # fits a share: no turn is taken
        pass


def test_a_codec_takes_its_turn(ground, recipe, monkeypatch):
    """With so little memory that no batch fits a share, children code one after the other, and the bytes are the same."""
    turns, flock = ground.folder / "turns", __import__("fcntl").flock
    turns.mkdir()

    def counted(file, how):
        if getattr(file, "name", "").rpartition("/")[2].startswith("noisebook-turn-"):
            (turns / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        return flock(file, how)

    monkeypatch.setattr("fcntl.flock", counted)
    outputs = [ground.output(), ground.output()]
    for output, device in zip(outputs, ("cpu", "cpu,cpu"), strict=True):
        tokenize(ground.input, output, codec=recipe, device=device, limits=Limits(memory=400 << 20), **SIZES)
        assert bool(list(turns.iterdir())) == (device != "cpu")
    assert digest(outputs[0]) == digest(outputs[1])
    assert json.loads((outputs[0] / "plan.json").read_text()) == json.loads((outputs[1] / "plan.json").read_text())
