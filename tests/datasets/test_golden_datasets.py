"""The golden tokenised data sets: they verify, read, resume and detokenize for ever."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from noisebook.cli.main import main
from noisebook.datasets import TokenDataset, TokenStream
from noisebook.errors import DatasetError
from tools import golden_datasets as golden
from tools.golden_datasets import FOLDER, HALF, OPTIONS, resume

pytestmark = pytest.mark.quick

EXPECTED = json.loads(golden.EXPECTED.read_text())
FINISHED = [name for name in OPTIONS if name != HALF]
OF_HALF = "pictures"  # what the half-finished one is to become


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A copy of all data sets, with inputs as old as they were, as the working directory."""
    monkeypatch.chdir(golden.copied(tmp_path / "dataset-v1"))


def rows(name: str, partial: bool = False) -> list[dict]:
    return [{**row, "tokens": row["tokens"].tolist()} for row in TokenDataset(name, partial)]


def files(name: str, folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(name, folder).iterdir())}


def content(data: bytes) -> tuple[list[dict], dict, dict]:
    """The rows of a shard, its footer without versions, the versions: bytes depend on these too."""
    table = pq.read_table(pa.BufferReader(data))
    footer = json.loads(table.schema.metadata[b"noisebook"])
    return table.to_pylist(), footer, footer.pop("versions")


def assert_same_shards(name: str, made: str) -> None:
    """The shards of `made` are those of the finished `name`, byte for byte where libraries are of the same versions."""
    old, new = files(FOLDER / name, "shards"), files(made, "shards")
    assert old.keys() == new.keys()
    for shard, data in old.items():
        assert content(new[shard])[:2] == content(data)[:2], shard
        if content(new[shard])[2] == content(data)[2]:
            assert hashlib.sha256(new[shard]).hexdigest() == EXPECTED[name]["shards"][shard]


def verified(name: str, capsys) -> tuple[int, dict]:
    capsys.readouterr()
    return main(["verify", name, "--json"]), json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_golden_data_set_is_whole_and_reads_for_ever(name, capsys):
    """If this fails, data sets of users no longer read: never write the golden ones anew."""
    expected, half = EXPECTED[name], name == HALF
    code, found = verified(name, capsys)
    done = len(expected["shards"])
    assert (code, found["complete"]) == ((7, False) if half else (0, True))
    assert (found["shards"], found["of_shards"]) == (done, 3)
    assert (found["n_ok"], found["n_failed"]) == (len(expected["rows"]), len(expected["failed"]))
    assert [p["name"] for p in found["problems"]] == [f"shards/{n:06d}.parquet" for n in range(done, 3)]
    assert {k: hashlib.sha256(v).hexdigest() for k, v in files(name, "shards").items()} == expected["shards"]
    assert rows(name, half) == expected["rows"]
    stream = [{**row, "tokens": row["tokens"].tolist()} for row in TokenStream(name, partial=half)]
    assert stream == expected["rows"]
    failed = {f["key"]: f["code"] for entry in TokenDataset(name, half).done for f in entry["failed"]}
    assert failed == expected["failed"]


def test_the_half_finished_one_is_not_taken_for_a_finished_one():
    with pytest.raises(DatasetError, match="1 of 3 shards are done"):
        TokenDataset(HALF)


def test_the_half_finished_one_resumes_and_ends_as_the_finished_one(capsys):
    first = files(HALF, "shards")
    assert list(first) == ["000000.parquet"]
    assert resume(HALF) == 3  # the broken picture of the first shard
    shards = files(HALF, "shards")
    assert shards["000000.parquet"] == first["000000.parquet"]
    assert_same_shards(OF_HALF, HALF)
    assert rows(HALF) == EXPECTED[OF_HALF]["rows"]
    code, found = verified(HALF, capsys)
    assert (code, found["complete"]) == (0, True)


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_one_is_resumed_without_a_change(name):
    before = {path: path.read_bytes() for path in Path(name).rglob("*") if path.is_file() and path.suffix != ".jsonl"}
    assert resume(name) == (3 if EXPECTED[name]["failed"] else 0)
    after = {path: path.read_bytes() for path in before}
    assert after == before


@pytest.mark.parametrize("name", FINISHED)
def test_a_lost_shard_is_made_again(name, capsys):
    Path(name, "shards/000001.parquet").unlink()
    Path(name, "ledger/000001.json").unlink()
    assert resume(name) == (3 if EXPECTED[name]["failed"] else 0)
    assert_same_shards(name, name)
    assert rows(name) == EXPECTED[name]["rows"]
    assert verified(name, capsys)[0] == 0


@pytest.mark.parametrize("name", OPTIONS)
def test_inputs_of_another_time_are_refused(name, capsys):
    path = Path(OPTIONS[name][0])
    path = path / "red/8.png" if path.is_dir() else path
    os.utime(path, (golden.MTIME, golden.MTIME + 1))
    assert resume(name) == DatasetError.code
    assert "the input has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("name", FINISHED)
def test_it_decodes_to_the_same_pictures(name, tmp_path):
    """But for values that are rounded the other way: which sums a library takes first depends on the processor, so that
    the same torch gave another last bit on another one. When the pictures were written, a key that ends in .png got
    another .png."""
    out, expected = tmp_path / "out", EXPECTED[name]
    assert main(["detokenize", name, "-o", str(out)]) == 0
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*.png")}
    written = {key.removesuffix(".png") if key.endswith(".png.png") else key: key for key in expected["pictures"]}
    assert found.keys() == written.keys()
    for key, path in ((written[name], path) for name, path in found.items()):
        before, now = (np.asarray(Image.open(p)).astype(int) for p in (FOLDER / "decoded" / name / key, path))
        assert before.shape == now.shape
        assert np.abs(before - now).max() <= 1, key
        assert (before != now).mean() <= 0.01, key


def test_the_golden_data_sets_are_of_every_kind_and_hold_no_path_of_a_machine():
    plans = {name: json.loads((FOLDER / name / "plan.json").read_text()) for name in OPTIONS}
    assert {plan["version"] for plan in plans.values()} == {1}
    assert {plan["kind"] for plan in plans.values()} == {"pictures", "webdataset", "parquet"}
    assert {plan["settings"]["spec"].get("rule", "bins") for plan in plans.values()} == {"bins", "top", "poisson"}
    assert plans[HALF]["hash"] == plans[OF_HALF]["hash"]
    for name in OPTIONS:
        paths = pq.read_table(FOLDER / name / "plan-files.parquet")["path"].to_pylist()
        assert paths
        assert all(path.startswith(f"{golden.PLACE}/inputs/") for path in paths)
        ledgers = [json.loads(data)["entry"] for data in files(FOLDER / name, "ledger").values()]
        assert {entry["host"] for entry in ledgers} == {"example"}
