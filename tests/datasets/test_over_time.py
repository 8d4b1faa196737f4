"""Data sets over time: other versions, inputs that have moved, and folders that are there already."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from noisebook.cli.main import main
from noisebook.datasets import TokenDataset, export, ledger, run
from noisebook.errors import DatasetError, ImageError
from tools import golden_datasets as golden

NAME = "pictures"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(golden.copied(tmp_path / "dataset-v1"))


def resume(inputs=f"inputs/{NAME}"):
    options = golden.OPTIONS[NAME]
    return main(["tokenize", inputs, *options[1:], "-o", NAME, "--resume", *golden.HOW])


def test_other_versions_are_said_and_listed(monkeypatch, capsys):
    made = TokenDataset(NAME).done[1]["versions"]
    ours = {**made, "torch": "99.1", "decoder": "pillow 99"}
    monkeypatch.setattr(run, "versions", lambda: ours)
    monkeypatch.setattr("noisebook.datasets.shard.versions", lambda: ours)
    assert resume() in (0, 3)
    said = capsys.readouterr().err
    assert f"3 of the shards that are done were made with {ledger.versions_text(made, ours)}; this is torch 99.1" in said
    Path(NAME, "shards/000001.parquet").unlink()
    assert resume() in (0, 3)
    assert "2 of the shards that are done were made with" in capsys.readouterr().err
    data = TokenDataset(NAME)
    assert data.versions == [(made, 2), (ours, 1)]
    assert data.provenance["torch"] == f"{made['torch']} and 99.1"
    assert data.provenance["noisebook"] == made["noisebook"]
    assert main(["verify", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"] == [{**made, "shards": 2}, {**ours, "shards": 1}]
    assert main(["verify", NAME]) == 0
    said = capsys.readouterr().out
    assert f"2 shards were made with {ledger.versions_text(made)}" in said
    assert "1 shard was made with" in said
    assert main(["report", NAME, "--images", "0"]) == 0
    page = Path("report.html").read_text()
    assert "(2 of the shards)" in page
    assert "torch 99.1" in page


def test_one_version_is_not_worth_a_line(capsys, monkeypatch):
    monkeypatch.setattr(run, "versions", lambda: TokenDataset(NAME).done[0]["versions"])
    assert resume() in (0, 3)
    assert "made with" not in capsys.readouterr().err


def test_versions_of_a_stranger_are_text():
    assert ledger.versions_text({"torch": "1\x1b[2J" + "x" * 10_000}).isprintable()
    assert len(ledger.versions_text({"torch": "x" * 10_000})) < 600
    assert ledger.versions_text({}) == "unknown versions"


def test_inputs_that_have_moved(capsys):
    os.rename("inputs", "moved")
    assert resume(f"moved/{NAME}") in (0, 3)
    capsys.readouterr()
    assert resume() == DatasetError.code
    assert "inputs/pictures" in capsys.readouterr().err
    assert main(["report", NAME, "--images", "1"]) == 0
    assert "--inputs" in capsys.readouterr().err
    assert main(["report", NAME, "--images", "1", "--inputs", "inputs", "--force"]) == DatasetError.code
    assert "inputs" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="inputs=FOLDER"):
        TokenDataset(NAME).original(0)
    with pytest.raises(DatasetError):
        TokenDataset(NAME, inputs="inputs")
    assert TokenDataset(NAME, inputs=f"moved/{NAME}").original(0).ndim == 3
    with pytest.raises(ImageError, match="gone"):
        TokenDataset(NAME, inputs="moved").original(0)


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_export_fills_a_folder_that_is_there_and_empty(form):
    os.mkdir("made")
    os.symlink("made", "link")
    inode = os.stat("made").st_ino
    assert main(["export", NAME, "-o", "fresh", "--format", form]) == 0
    assert main(["export", NAME, "-o", "link", "--format", form]) == 0
    assert os.stat("made").st_ino == inode  # it may be the root of a disk
    contents = [{p.name: p.read_bytes() for p in Path(name).iterdir()} for name in ("fresh", "made")]
    assert contents[0] == contents[1]
    os.mkdir("short")
    os.chdir("short")
    assert main(["export", f"../{NAME}", "-o", ".", "--format", form]) == 0
    assert {p.name for p in Path().iterdir()} == set(contents[0])


def test_an_export_leaves_what_is_there(monkeypatch, capsys):
    os.mkdir("full")
    Path("full/.hidden").touch()
    Path("file").touch()
    os.symlink("nowhere", "dangling")
    for name in ("full", "file", "dangling"):
        assert main(["export", NAME, "-o", name, "--format", "npy"]) == DatasetError.code
        said = capsys.readouterr().err.strip()
        assert name in said
        assert "-o" in said.splitlines()[-1]
    assert os.listdir("full") == [".hidden"]
    os.mkdir("made")

    def fails(data, folder):
        (folder / "tokens.npy").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_npy", fails)
    assert main(["export", NAME, "-o", "made", "--format", "npy"]) == DatasetError.code
    assert "No space left" in capsys.readouterr().err
    assert os.listdir("made") == []
    monkeypatch.setattr(export, "_npy", lambda data, folder: Path("made/other").touch())
    assert main(["export", NAME, "-o", "made", "--format", "npy"]) == DatasetError.code
    assert os.listdir("made") == ["other"]
