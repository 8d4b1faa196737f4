"""A sample of bench/reliability/faults.py: what a data set survives. Linux only: processes fork, and /proc is read."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("forks, and looks into /proc", allow_module_level=True)

from bench.reliability import faults_bits, faults_inputs, faults_kill, faults_zoo
from bench.reliability.faults_kit import Ground


@pytest.fixture
def ground(tmp_path: Path, fresh: np.random.Generator) -> Ground:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    return Ground(tmp_path / "ground", fresh, 20)


def test_kills_at_random_times(ground, fresh):
    found = faults_kill.random_kills(ground, trials=3, kills=10, seed=int(fresh.integers(1 << 30)))
    assert not found["faults"]
    assert found["kills"] >= 10
    assert not found["orphans"]


def test_kills_of_the_real_command(ground, fresh):
    assert not faults_kill.command_kills(ground, kills=1, seed=int(fresh.integers(1 << 30)))["faults"]


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_a_fault_at_steps_of_writing(ground, fresh, fault):
    every, first = 9, int(fresh.integers(9))
    found = faults_kill.every_step(ground, fault, lambda step: step % every == first)
    assert not found["faults"]
    assert found["tried"] > 5


def test_a_small_disk_fills_up(ground):
    if not faults_kill.can_mount(ground.folder / "probe"):
        pytest.skip("mounting is not permitted")
    found = faults_kill.small_disks(ground, range(8, 40, 12))
    assert not found["faults"]
    assert found["filled"] > 1


def test_files_may_not_grow(ground):
    found = faults_kill.small_files(ground, range(1000, 4000, 1500))
    assert not found["faults"]
    assert found["filled"]


def test_inputs_that_cannot_be_read_or_change(ground):
    found = faults_inputs.inputs_run(ground)
    assert not found["faults"]
    assert found["tried"] > 15


def test_resuming_another_job_is_refused(ground):
    assert not faults_inputs.refusals(ground)["faults"]


def test_every_animal_of_the_zoo_has_its_row(ground):
    found = faults_zoo.zoo_run(ground)
    assert not found["faults"]
    assert found["good_unchanged"] == 16


@pytest.mark.slow
def test_pictures_that_kill_or_hang(ground):
    assert not faults_inputs.deaths(ground, (1,))["faults"]


def test_flipped_bits_and_cut_files_are_found(ground, fresh):
    every, first = 61, int(fresh.integers(61))
    found = faults_bits.damaged_files(ground, lambda number: number % every == first)
    assert not found["faults"]
    alone = [row for row in found["rows"] if "alone" in row["reader"] and row["damage"] == "cut short"]
    assert alone
    assert all(row["found"] == row["tried"] for row in alone)


def test_damaged_shards_are_made_anew(ground):
    assert not faults_bits.remade(ground, 9)["faults"]


def test_the_same_run_gives_the_same_bytes(ground):
    assert not faults_bits.same_again(ground, (0, 1, 2))["faults"]


@pytest.mark.slow
def test_the_bench_sees_faults(ground, monkeypatch):
    """A store that writes in place and lets half of a file stand is caught."""
    from noisebook.datasets import store

    monkeypatch.setattr(faults_kill.atomic, "write_bytes", _in_place)
    monkeypatch.setattr(store, "write_bytes", _in_place)
    assert faults_kill.every_step(ground, "kill", lambda step: step < 12)["faults"]


def _in_place(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        os.fsync(file.fileno())
        file.write(data[len(data) // 2 :])
