"""Exit 0 means all of it: folders that vanish, processes that exclude each other, and what the environment says of ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.errors import DatasetError, SpecError

pytest.importorskip("pyarrow")

from noisebook.datasets import CodecRecipe, Rank, shard, tokenize
from noisebook.datasets.job import ends_together, local_device
from noisebook.datasets.store import Store

CHANGES = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
SIZES = {"shard_size": 2, "batch_size": 2}
posix = pytest.mark.skipif(os.name != "posix", reason="locks are of POSIX")


@pytest.fixture
def recipe(tmp_path):
    return CodecRecipe(backbone=tiny_backbone(tmp_path / "tiny.safetensors"), changes=CHANGES)


@pytest.fixture
def pictures(tmp_path, fresh):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, x in enumerate(random_images(fresh, 7, 16, 16)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def after(monkeypatch, count, action):
    """Does something when that many shards are committed."""
    commit, done = shard.Tokenizer._commit, []

    def watched(self, *args):
        found = commit(self, *args)
        done.append(0)
        if len(done) == count:
            action()
        return found

    monkeypatch.setattr(shard.Tokenizer, "_commit", watched)


@posix
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_deleted_or_replaced_ends_the_run(tmp_path, pictures, recipe, monkeypatch, capsys, count, again):
    out = tmp_path / "out"

    def vanish():
        shutil.rmtree(out)
        if again:
            out.mkdir()
            (out / ".lock").write_bytes(b"")

    after(monkeypatch, count, vanish)
    command = ["tokenize", str(pictures), "-o", str(out), "--backbone", recipe.backbone, *TINY, "--shard-size", "2"]
    assert main([*command, "--workers", "0"]) == 7
    assert "deleted or replaced while it was written" in capsys.readouterr().err
    assert not list(out.glob("shards/*"))


@posix
def test_shards_that_somebody_removed_are_missed_at_the_end(tmp_path, pictures, recipe, monkeypatch):
    out = tmp_path / "out"
    after(monkeypatch, 3, lambda: (out / "ledger/000001.json").unlink())
    with pytest.raises(DatasetError, match="only 3 of 4 shards are there at the end"):
        tokenize(pictures, out, codec=recipe, **SIZES)
    assert tokenize(pictures, out, codec=recipe, resume=True, **SIZES)["shards"] == 4


HOLD = """
import sys
from noisebook.datasets.store import Store
with Store(sys.argv[1]).lock(int(sys.argv[2]), int(sys.argv[3])):
    print("held", flush=True)
    sys.stdin.read()
"""


@posix
def test_ranks_share_a_folder_and_a_lone_run_does_not(tmp_path):
    """In a second process: (rank, of how many) there; here those that may, and those that may not."""
    cases = [((0, 1), [], [(0, 1), (0, 2), (1, 2)]), ((1, 3), [(0, 3), (2, 3)], [(1, 3), (0, 1)])]
    store = Store(tmp_path / "out")
    for held, may, may_not in cases:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "out"), *map(str, held)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout.readline() == b"held\n"
            for rank in may:
                with store.lock(*rank):
                    pass
            for rank in may_not:
                with pytest.raises(DatasetError, match="another process is writing here"), store.lock(*rank):
                    pass
            other.stdin.close()
        for rank in may_not:
            with store.lock(*rank):
                pass


@posix
def test_a_run_of_an_older_version_is_seen(tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/.lock-0", "a") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another process"), Store(tmp_path / "out").lock():
            pass


@posix
def test_only_files_without_a_writer_are_collected(tmp_path, pictures, recipe):
    import fcntl

    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    gone, alive = out / "shards/.000000.parquet.a_234567.tmp", out / "shards/.000001.parquet.b_234567.tmp"
    for path in (gone, alive):
        path.write_bytes(b"half")
    with open(alive, "rb+") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        tokenize(pictures, out, codec=recipe, **SIZES)
        assert [gone.exists(), alive.exists()] == [False, True]
    tokenize(pictures, out, codec=recipe, resume=True, **SIZES)
    assert not alive.exists()


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "abc", "RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "1.5"}, "RANK"),
        ({"WORLD_SIZE": "9" * 5000, "RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "3"}, "WORLD_SIZE"),
        ({"SLURM_NTASKS": "4"}, "SLURM_PROCID"),
        ({"SLURM_NTASKS": "x", "SLURM_PROCID": "0"}, "SLURM_NTASKS"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "\x1b[2J"}, "SLURM_PROCID"),
        ({"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, "SLURM_ARRAY_TASK_ID"),
        ({"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_ID": "5"}, "SLURM_ARRAY_TASK_MIN"),
        (
            {
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "0",
            },
            "SLURM_ARRAY_TASK_STEP",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": ""}, "OMPI_COMM_WORLD_RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "two", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "0", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE"),
        ({"PMI_SIZE": "3", "PMI_RANK": "x"}, "PMI_RANK"),
        ({"PMI_RANK": "1"}, "PMI_SIZE"),
        ({"PMI_SIZE": "-2", "PMI_RANK": "0"}, "PMI_SIZE"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK"),
        ({"SLURM_NTASKS": "0"}, "SLURM_NTASKS"),
        ({"WORLD_SIZE": "2", "RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_RANK"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "PMI_RANK"),
    ],
)
def test_an_environment_that_does_not_say_the_rank_is_refused_by_name(environment, name):
    with pytest.raises(SpecError, match=rf"\b{name}\b") as raised:
        Rank.of_environment(environment)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        (OMPI, Rank(3, 4)),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, Rank(2, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, Rank(0, 1)),
        ({"OMPI_COMM_WORLD_SIZE": "", "OMPI_COMM_WORLD_RANK": " "}, Rank(0, 1)),
        ({**OMPI, "RANK": "3", "WORLD_SIZE": "4", "PMI_RANK": "3", "PMI_SIZE": "4"}, Rank(3, 4)),
        # mpirun in a job of Slurm: its processes inherit what Slurm says of the process that started them
        ({**OMPI, "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, Rank(3, 4)),
        # srun --mpi=pmi2
        ({"PMI_SIZE": "4", "PMI_RANK": "2", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, Rank(2, 4)),
        # and in an array of jobs each has a share of its own
        (
            {
                **OMPI,
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            Rank(11, 12),
        ),
    ],
)
def test_a_rank_of_mpirun(environment, rank):
    assert Rank.of_environment(environment) == rank


def test_what_mpirun_says_of_a_process():
    assert local_device("cuda", {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}) == "cuda:1"
    assert local_device("cuda", {"MPI_LOCALRANKID": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == "cuda:2"
    assert local_device("cuda", {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "1"}) == "cuda"
    with pytest.raises(SpecError, match="OMPI_COMM_WORLD_LOCAL_RANK"):
        local_device("cuda", {"OMPI_COMM_WORLD_LOCAL_RANK": "x"})
    assert ends_together(OMPI)
    assert ends_together({"PMI_SIZE": "4", "PMI_RANK": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"})
    assert not ends_together({"PMI_SIZE": "4", "PMI_RANK": "2", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"})
    assert not ends_together({"OMPI_COMM_WORLD_SIZE": "1"})


def test_what_is_empty_is_not_set():
    assert Rank.of_environment({"WORLD_SIZE": "", "RANK": "", "SLURM_NTASKS": " "}) == Rank(0, 1)
    assert Rank.of_environment({"WORLD_SIZE": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}) == Rank(1, 2)
    assert local_device("cuda", {"LOCAL_RANK": ""}) == "cuda"
    assert local_device("cuda", {"LOCAL_RANK": "3"}) == "cuda:3"
    with pytest.raises(SpecError, match="LOCAL_RANK must be a whole number, not 'x'"):
        local_device("cuda", {"LOCAL_RANK": "x"})
    assert local_device("cpu", {"LOCAL_RANK": "x"}) == "cpu"


def test_files_beside_the_data_set_are_named_as_text(tmp_path, pictures, recipe):
    (tmp_path / "out").mkdir()
    Path(tmp_path / "out", "a\x1b[31m").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"something else is there \(a\\x1b\[31m\)"):
        tokenize(pictures, tmp_path / "out", codec=recipe, **SIZES)
