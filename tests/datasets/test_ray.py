"""Data sets made by actors of Ray: a small trial of bench/reliability/faults.py, and what a wrong cluster says."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="pip install 'noisebook[ray]'")
pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("looks into /proc", allow_module_level=True)

from bench.reliability import faults_ray
from bench.reliability.faults_kit import Ground, digest
from common import random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.codec.load import load
from noisebook.datasets import CodecRecipe, TokenizeBatch, ledger, tokenize
from noisebook.datasets import ray as ray_engine
from noisebook.datasets.store import Store
from noisebook.errors import BackboneError, DatasetError, SpecError

PROBE = (
    "import ray; ray.init('local', num_cpus=1, include_dashboard=False); assert ray.get(ray.remote(lambda: 7).remote()) == 7"
)


@pytest.fixture(scope="module")
def cluster():
    try:  # some containers forbid what Ray needs, and it waits for ever
        subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, timeout=240)
    except subprocess.SubprocessError as error:
        pytest.skip(f"Ray itself does not run on this machine: {error}")
    with faults_ray.ray_here() as ray:
        yield ray


@pytest.fixture
def ground(tmp_path: Path, fresh: np.random.Generator) -> Ground:
    torch.set_num_threads(1)
    return Ground(tmp_path / "ground", fresh, 20)


def test_killed_actors_lose_and_double_nothing(cluster, ground, fresh):
    found = faults_ray.kills(ground, shards=8, count=2, seed=int(fresh.integers(1 << 30)))
    assert not found["faults"]
    assert found["kills"] == 2


@pytest.mark.slow
def test_a_shard_that_kills_its_actors_ends_in_the_ledger(cluster, ground):
    assert not faults_ray.poison(ground)["faults"]


@pytest.mark.slow
def test_a_driver_that_is_killed_is_resumed_to_the_bytes_of_one_process(cluster, ground, monkeypatch):
    output = ground.output()
    ray_here = ground.arguments(output, "--engine", "ray", "--actors", "1")
    environment = {**os.environ, "RAY_ADDRESS": cluster.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, "-m", "noisebook", *ray_here], env=environment, stderr=subprocess.PIPE)
    while not faults_ray.done(output):
        assert driver.poll() is None, driver.communicate()[1].decode()
        time.sleep(0.01)
    driver.kill()
    driver.communicate()
    assert main([*ray_here, "--resume"]) == 3
    assert digest(output) == digest(ground.whole())


def test_the_public_function_makes_the_bytes_of_one_process(cluster, ground):
    """Of a recipe, and of a function, which is carried to the actors by value."""
    changes, net = faults_ray._recipe(), ground.backbone

    def make(device, size):
        return load(backbone=net, device=device, dtype="float32", **changes)

    digests = []
    for codec in (CodecRecipe(backbone=net, changes=changes, dtype="float32"), make):
        for engine in ("local", "ray"):
            output = ground.output()
            counts = tokenize(ground.input, output, codec=codec, engine=engine, actors=1, shard_size=8, batch_size=4)
            assert (counts["n_in"], counts["shards"]) == (20, 3)
            digests.append(digest(output))
    assert digests[0] == digests[1] == digest(ground.whole())
    assert digests[2] == digests[3]


def test_a_codec_that_cannot_go_to_actors_is_an_error(cluster, ground):
    codec, lock = load(backbone=ground.backbone, dtype="float32", **faults_ray._recipe()), threading.Lock()
    with pytest.raises(SpecError, match="stays in its process"):
        tokenize(ground.input, ground.output(), codec=codec, engine="ray")
    with pytest.raises(SpecError, match="cannot be pickled"):
        tokenize(ground.input, ground.output(), codec=lambda device, size: lock and codec, engine="ray", actors=1)


@pytest.mark.slow
def test_what_is_wrong_for_all_actors_is_an_error_and_poisons_nothing(cluster, ground):
    output = ground.output()
    with pytest.raises(BackboneError, match="not on this node"):
        faults_ray.make(ground, ground.input, output, 4, retries=0, actors=1, wrong="not on this node")
    assert not Store(output).names(ledger.LEDGER)


def test_an_actor_that_sees_no_plan_is_an_error(cluster, ground, capsys):
    command = ground.arguments("memory://ray-test", "--engine", "ray", "--actors", "1")  # each has a memory of its own
    assert main(command) == 7
    assert "this node sees no plan there" in capsys.readouterr().err


def test_no_place_for_an_actor_is_an_error(cluster, ground, monkeypatch, capsys):
    monkeypatch.setattr(ray_engine, "PLACE", 1.0)
    assert main(ground.arguments(ground.output(), "--engine", "ray", "--device", "cuda")) == 7
    assert "no actor found a place in the Ray cluster in 1 s: it has 2 CPUs and 0 GPUs" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DatasetError, match="Ray cannot be reached"):
        ray_engine.connect()


@pytest.mark.slow
def test_a_batch_of_ray_data(cluster, fresh, tmp_path):
    pixels = random_images(fresh, 10, 16, 16)
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    options = {
        "backbone": net,
        "steps": 4,
        "budget": 8,
        "budget_last": 8,
        "vocab_size": 256,
        "scale_pixels": 0,
        "start_budget": 0,
    }
    rows = [{"image": x.permute(1, 2, 0).numpy(), "number": i} for i, x in enumerate(pixels)]
    made = cluster.data.from_items(rows).map_batches(
        TokenizeBatch, fn_constructor_kwargs=options, batch_size=4, concurrency=1
    )
    found = {row["number"]: row["tokens"] for row in made.take_all()}
    expected = TokenizeBatch(**options)({"image": [row["image"] for row in rows]})["tokens"]
    assert all((found[i] == expected[i]).all() for i in range(10))
