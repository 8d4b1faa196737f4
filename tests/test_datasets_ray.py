"""Data sets made by actors of Ray: a small one of bench/faults.py's trials, and what a wrong cluster says."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="pip install 'noisebook[ray]'")
pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("looks into /proc", allow_module_level=True)

import faults_ray
from faults_kit import Ground, digest

from common import random_images, tiny_backbone
from noisebook.cli import main
from noisebook.datasets import TokenizeBatch, ledger, ray_engine
from noisebook.datasets.store import Store
from noisebook.errors import BackboneError, DatasetError


@pytest.fixture(scope="module")
def cluster():
    with faults_ray.ray_here() as ray:
        yield ray


@pytest.fixture
def ground(tmp_path: Path, fresh: np.random.Generator) -> Ground:
    torch.set_num_threads(1)
    return Ground(tmp_path / "ground", fresh, 20)


def test_killed_actors_lose_and_double_nothing(cluster, ground):
    found = faults_ray.kills(ground, shards=8, count=2)
    assert not found["faults"]
    assert found["kills"] == 2


def test_a_shard_that_kills_its_actors_ends_in_the_ledger(cluster, ground):
    assert not faults_ray.poison(ground)["faults"]


def test_the_command_makes_the_bytes_of_one_process(cluster, ground):
    output = ground.output()
    assert main(ground.arguments(output, "--engine", "ray", "--actors", "1")) == 3
    assert digest(output) == digest(ground.whole())


def test_what_is_wrong_for_all_actors_is_an_error_and_poisons_nothing(cluster, ground):
    output = ground.output()
    with pytest.raises(BackboneError, match="not on this node"):
        faults_ray.make(ground, ground.input, output, 4, retries=0, actors=1, wrong="not on this node")
    assert not Store(output).names(ledger.LEDGER)


def test_gpus_that_ray_does_not_know_of(cluster):
    options = argparse.Namespace(retries=0, actors=None, device="cuda")
    with pytest.raises(DatasetError, match="no GPU"):
        ray_engine.engine(options)(None, [0], None)  # type: ignore[arg-type]


def test_a_batch_of_ray_data(cluster, fresh, tmp_path):
    pixels = random_images(fresh, 10, 16, 16)
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    options = {"backbone": net, "steps": 4, "bins": 8, "bins_last": 8, "vocabulary": 256, "scale_pixels": 0, "start_bins": 0}
    rows = [{"image": x.permute(1, 2, 0).numpy(), "number": i} for i, x in enumerate(pixels)]
    made = cluster.data.from_items(rows).map_batches(
        TokenizeBatch, fn_constructor_kwargs=options, batch_size=4, concurrency=1
    )
    found = {row["number"]: row["tokens"] for row in made.take_all()}
    expected = TokenizeBatch(**options)({"image": [row["image"] for row in rows]})["tokens"]
    assert all((found[i] == expected[i]).all() for i in range(10))
