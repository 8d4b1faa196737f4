"""Data sets made by actors of Ray: the same bytes, whatever dies. One cluster of 2 CPUs for all tests."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="pip install 'noisebook[ray]'")
pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("looks into /proc", allow_module_level=True)

import ray
import torch
from faults_kit import digest, faults_of
from faults_ray import done, events, kill_actors

from common import ROOT, TINY, random_images, tiny_backbone
from noisebook.cli import main
from noisebook.datasets import TokenDataset, ledger, ray_engine
from noisebook.datasets.store import Store

COUNT, SHARD = 28, 4
DEADLY = b"this picture kills whoever reads it"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A local cluster whose actors die of DEADLY while the file `trap` is there; (its address, trap)."""
    trap = tmp_path_factory.mktemp("ray") / "trap"

    def arm():
        import os
        import signal

        from noisebook.datasets import decoding

        there = decoding.decode

        def decode(data, *args):
            if data == DEADLY and trap.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return there(data, *args)

        decoding.decode = decode

    paths = os.pathsep.join([str(ROOT / "engine"), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.setenv("OMP_NUM_THREADS", "1")
        context = ray.init(
            "local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False,
            runtime_env={"worker_process_setup_hook": arm},
        )  # fmt: skip
        try:
            yield context.address_info["gcs_address"], trap
        finally:
            ray.shutdown()


@pytest.fixture
def pictures(tmp_path, fresh) -> Path:
    """PNGs in a folder, and among the last of them one that kills where it may."""
    from PIL import Image

    (tmp_path / "in").mkdir()
    for i, image in enumerate(random_images(fresh, COUNT, 16, 16).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / f"in/{i:03d}.png")
    (tmp_path / f"in/{COUNT - 2:03d}.png").write_bytes(DEADLY)
    return tmp_path / "in"


@pytest.fixture
def command(tmp_path, pictures):
    """The arguments of `noisebook tokenize` but for its output."""
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    return ["tokenize", str(pictures), "--backbone", net, *TINY, "--shard-size", str(SHARD), "--batch-size", "2",
            "--workers", "0"]  # fmt: skip


@pytest.fixture
def wanted(tmp_path, command) -> str:
    """The digest of an undisturbed run without Ray."""
    torch.set_num_threads(1)  # as actors have
    assert main([*command, "-o", str(tmp_path / "whole")]) == 3
    return digest(tmp_path / "whole")


def test_actors_killed_at_random_change_no_byte(cluster, tmp_path, command, wanted, fresh):
    rng, output, killed = random.Random(int(fresh.integers(1 << 30))), tmp_path / "out", []
    after = sorted(rng.sample(range(COUNT // SHARD - 2), 2))
    killer = threading.Thread(target=lambda: killed.extend(kill_actors(output, after, rng)), daemon=True)
    killer.start()
    assert main([*command, "-o", str(output), "--engine", "ray", "--actors", "2", "--retries", "9"]) == 3
    killer.join(1)
    assert len(killed) == 2
    assert not faults_of(output, wanted)
    assert len({e["process"] for e in events(output, "actor")}) > 2
    assert {e["shard"] for e in events(output, "shard")} == set(range(COUNT // SHARD))


def test_a_shard_that_kills_is_given_up_and_tried_again(cluster, tmp_path, command, wanted, capsys):
    output, trap = tmp_path / "out", cluster[1]
    ray_command = [*command, "-o", str(output), "--engine", "ray", "--actors", "1", "--retries", "0", "--json"]
    trap.touch()
    try:
        assert main(ray_command) == 3
    finally:
        trap.unlink()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["n_ok"], found["failed_by_code"]) == (COUNT - SHARD, {"poisoned": SHARD})
    entries = [ledger.read_ledger(Store(output), shard) for shard in range(COUNT // SHARD)]
    assert [entry["status"] for entry in entries if entry] == ["done"] * (COUNT // SHARD - 1) + ["poisoned"]
    assert main(["verify", str(output)]) == 4
    assert "given up: its actor died 1 times" in capsys.readouterr().out
    assert len(TokenDataset(output, partial=True)) == COUNT - SHARD
    assert main([*ray_command, "--resume"]) == 3
    assert not faults_of(output, wanted)


def test_a_driver_that_is_killed_is_resumed(cluster, tmp_path, command, wanted):
    output = tmp_path / "out"
    ray_command = [*command, "-o", str(output), "--engine", "ray", "--actors", "1"]
    environment = {**os.environ, "RAY_ADDRESS": cluster[0]}
    driver = subprocess.Popen([sys.executable, "-m", "noisebook", *ray_command], env=environment, stderr=subprocess.PIPE)
    while done(output) < 2:
        assert driver.poll() is None, driver.communicate()[1].decode()
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    assert main([*ray_command, "--resume"]) == 3
    assert not faults_of(output, wanted)


def test_no_place_for_an_actor_is_an_error(cluster, tmp_path, command, monkeypatch, capsys):
    monkeypatch.setattr(ray_engine, "PLACE", 1.0)
    assert main([*command, "-o", str(tmp_path / "out"), "--engine", "ray", "--device", "cuda"]) == 7
    assert "no actor found a place in the Ray cluster in 1 s: it has 2 CPUs and 0 GPUs" in capsys.readouterr().err


def test_what_an_actor_raises_is_raised_here(cluster, tmp_path, command, capsys):
    """An output that the actors do not see: here each has a memory of its own."""
    assert main([*command, "-o", "memory://ray-test", "--engine", "ray", "--actors", "1"]) == 7
    assert "this node sees no plan there" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    from noisebook.errors import DatasetError

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DatasetError, match="Ray cannot be reached"):
        ray_engine.connect()
