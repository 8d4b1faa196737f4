"""What `tokenize` chooses by itself: it is in the plan, and whoever goes on with the plan reads it there."""

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from PIL import Image

import noisebook
from common import Shrink, tiny_backbone
from noisebook.cli.main import main
from noisebook.datasets import CodecRecipe, choices, tokenize
from noisebook.datasets.job import Job
from noisebook.datasets.run import make_plan
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, SpecError

GIB = 1 << 30
KNOBS = {"steps": 2, "budget": 2, "budget_last": 2, "vocab_size": 256}
PLAIN = {"changes": KNOBS, "dtype": "float32"}  # that is chosen, too: see test_dtype.py


@pytest.fixture
def net(tmp_path):
    return tiny_backbone(tmp_path / "tiny.safetensors")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("device", "size", "memory", "expected"),
    [
        ("cpu", (32, 32), 0, 32),
        ("mps", (32, 32), 64 * GIB, 32),
        ("cuda", None, 140 * GIB, 32),
        ("cuda", (32, 32), 140 * GIB, 1024),
        ("cuda", (256, 256), 140 * GIB, 128),
        ("cuda", (512, 512), 140 * GIB, 32),
        ("cuda", (512, 512), 80 * GIB, 32),
        ("cuda", (512, 512), 24 * GIB, 16),
        ("cuda", (500, 375), 24 * GIB, 16),
        ("cuda", (1024, 1024), 140 * GIB, 8),
        ("cuda", (4000, 3000), 140 * GIB, 1),
        ("cuda", (32, 32), choices.UNSEEN, 1024),
        ("cuda", (512, 512), choices.UNSEEN, 16),
    ],
)
def test_images_of_a_batch(device, size, memory, expected):
    assert choices.batch_size(device, size, memory) == expected


def test_machines_that_are_nearly_equal_choose_the_same():
    sizes = [(h, w) for h in (32, 100, 512, 1000) for w in (32, 200, 700)]
    for size in sizes:
        assert len({choices.batch_size("cuda", size, n) for n in (65 * GIB, 79 * GIB, 80 * GIB, 127 * GIB)}) == 1


@pytest.mark.parametrize(("cores", "devices", "expected"), [(1, 1, 1), (3, 1, 3), (64, 1, 8), (64, 4, 32), (6, 4, 6)])
def test_workers_are_as_many_as_the_cores_that_a_process_may_use(cores, devices, expected, monkeypatch):
    monkeypatch.setattr(choices.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert choices.workers(devices) == expected


class Machine:
    """A machine with a GPU, as far as plans are concerned: codecs work on the CPU and keep what they were told."""

    def __init__(self, net, output, memory=80 * GIB):
        self.net, self.output, self.memory, self.loaded, self.said = net, output, memory, [], []

    def plan(self, pictures, monkeypatch, here=True, recipe=None, **options):
        recipe = recipe or CodecRecipe(backbone=self.net, **PLAIN)
        monkeypatch.setattr(choices, "gpu_memory", lambda: self.memory)

        def make_codec(size, network):
            self.loaded.append(network.get("compile", "open"))
            return noisebook.load(backbone=self.net, **KNOBS)

        job = Job([pictures], str(self.output), resume=True, network={**recipe.network(), "device": "cuda"}, **options)
        return make_plan(job, make_codec, Store(str(self.output)), self.said.append, here)[0].settings


def test_what_is_chosen_is_in_the_plan_and_read_there_by_others(net, pictures, tmp_path, monkeypatch):
    """Also by a machine that would have chosen otherwise, and after what the choice follows from has changed."""
    monkeypatch.setattr(choices, "WORTH", 1.0)
    first = Machine(net, tmp_path / "out").plan(pictures, monkeypatch)
    assert (first.batch_size, first.network["compile"]) == (1024, "True")
    recorded = json.loads((tmp_path / "out/plan.json").read_text())["settings"]
    assert (recorded["batch_size"], recorded["network"]["compile"]) == (1024, "True")
    monkeypatch.setattr(choices, "WORTH", 1e30)
    other = Machine(net, tmp_path / "out", memory=8 * GIB)
    assert other.plan(pictures, monkeypatch) == first
    assert other.loaded == ["True"]  # its codec is made as the plan says, and at once
    assert other.said == []
    with pytest.raises(DatasetError, match="batch_size"):
        other.plan(pictures, monkeypatch, batch_size=4)
    with pytest.raises(DatasetError, match="network"):
        other.plan(pictures, monkeypatch, recipe=CodecRecipe(backbone=net, **PLAIN, compile=False))
    assert other.plan(pictures, monkeypatch, recipe=CodecRecipe(backbone=net, **PLAIN, compile=True)) == first


@pytest.mark.parametrize(("worth", "expected"), [(1.0, "on"), (1e30, "off")])
def test_the_log_says_why_it_compiles(net, pictures, tmp_path, monkeypatch, worth, expected):
    monkeypatch.setattr(choices, "WORTH", worth)
    machine = Machine(net, tmp_path / "out")
    machine.plan(pictures, monkeypatch)
    (line,) = machine.said
    assert line.startswith(f"compile: {expected}: the networks of 5 images take ")
    assert ("--no-compile" in line) == (expected == "on")
    assert machine.loaded == (["open", "True"] if expected == "on" else ["open"])  # again, compiled, where it works


def test_a_process_that_hands_out_the_work_compiles_nothing(net, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "WORTH", 1.0)
    machine = Machine(net, tmp_path / "out")
    assert machine.plan(pictures, monkeypatch, here=False).network["compile"] == "True"
    assert machine.loaded == ["open"]


def test_what_the_user_has_said_is_not_chosen(net, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "WORTH", 1.0)
    machine = Machine(net, tmp_path / "out")
    said = machine.plan(pictures, monkeypatch, recipe=CodecRecipe(backbone=net, **PLAIN, compile=False), batch_size=7)
    assert (said.batch_size, said.network["compile"], machine.said) == (7, "False", [])


def test_on_a_cpu_all_is_as_before(net, pictures, tmp_path):
    """Plans that are there are gone on with."""
    words = ["tokenize", pictures, "-o", str(tmp_path / "out"), "--backbone", net, "--workers", "0", "--steps", "2"]
    words += ["--budget", "2", "--budget-last", "2", "--vocab-size", "256"]
    assert main(words) == 0
    settings = json.loads((tmp_path / "out/plan.json").read_text())["settings"]
    assert (settings["batch_size"], settings["network"]["compile"]) == (32, "False")
    assert main([*words, "--resume", "--no-compile", "--batch-size", "32"]) == 0


def test_operations_are_those_of_the_network_and_nothing_is_computed(net):
    codec = noisebook.load(backbone=net, **KNOBS)
    found = {side: choices.operations(codec, (side, side)) for side in (32, 64, 2048)}
    assert found[32] > 2e6
    assert 4 * found[32] <= found[64] <= 6 * found[32]  # convolutions by the pixels, the transform by more
    assert found[2048] > 4096 * found[32]
    uncountable, said = noisebook.load(backbone=Shrink(), **KNOBS), []
    assert choices.operations(uncountable, (32, 32)) == 0.0
    assert not choices.compiles(uncountable, "cuda", (32, 32), 1 << 40, said.append)
    assert "cannot be counted" in said[0]
    assert codec.backbone.device.type == "cpu"


def test_a_network_that_cannot_be_compiled_stops_the_run_in_words(net, pictures, tmp_path, monkeypatch):
    """It is no fault of an image."""
    codec = noisebook.load(backbone=net, **KNOBS)
    kind = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})

    def fails(images):
        raise kind("no compiler is there\nmore")

    monkeypatch.setattr(codec, "encode", fails)
    with pytest.raises(SpecError, match=r"cannot be compiled.*no compiler is there.*--no-compile"):
        tokenize(pictures, tmp_path / "out", codec=codec)
