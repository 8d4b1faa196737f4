"""Pictures of a data set: names, what is there already, and keys that cannot be names."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from noisebook.cli.main import main
from noisebook.codec.load import load
from noisebook.datasets import TokenDataset
from noisebook.datasets import detokenize as module
from noisebook.datasets.detokenize import MARKER, detokenize
from noisebook.datasets.names import TAKEN, PictureNames, folds, of_windows
from noisebook.errors import FormatError
from noisebook.images import files
from noisebook.runtime.limits import Limits
from tools import golden_datasets as golden


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in ("webdataset", "parquet", "pictures"):
        shutil.copytree(golden.FOLDER / name, tmp_path / "sets" / name)
    monkeypatch.chdir(tmp_path / "sets")


def names_of(*keys):
    names = PictureNames()
    return [name or problem for name, problem in map(names, keys)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a", "b.png", "c.PNG", "d/e.jpg"], ["a.png", "b.png", "c.PNG", "d/e.jpg.png"]),
        (["a", "a.png"], ["a.png", "a.png.png"]),
        (["a.png", "a"], ["a.png", "a.png.png"]),
        (["a", "a.png", "a.png.png"], ["a.png", "a.png.png", "a.png.png.png"]),
        (["a.png/b", "a"], ["a.png/b.png", "a.png.png"]),
        (["a.png", "a.png.png", "a"], ["a.png", "a.png.png", TAKEN]),
        (["a", "a.png/b"], ["a.png", TAKEN]),
    ],
)
def test_a_name_is_the_key_and_the_later_of_two_that_meet_gets_more(keys, expected):
    assert names_of(*keys) == expected
    for count in range(len(keys)):  # whatever comes after
        assert names_of(*keys[:count]) == expected[:count]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a", "A"], ["a.png", "A.png.png"]),
        (["a.png", "A.PNG", "a"], ["a.png", "A.PNG.png", TAKEN]),
        (["d/x", "D/X", "D/y"], ["d/x.png", "D/X.png.png", "D/y.png"]),
        (["\u00e9", "e\u0301"], ["\u00e9.png", "e\u0301.png.png"]),
        (["stra\u00dfe", "STRASSE"], ["stra\u00dfe.png", "STRASSE.png.png"]),
    ],
)
def test_names_that_differ_in_case_meet_where_the_folder_takes_them_for_one(keys, expected):
    names = PictureNames(fold=True)
    assert [name or problem for name, problem in map(names, keys)] == expected
    assert names_of(*keys)[1] == (keys[1] if keys[1].lower().endswith(".png") else keys[1] + ".png")


def test_a_folder_that_takes_names_for_one_is_seen(tmp_path, monkeypatch):
    (tmp_path / "Ab").touch()
    (tmp_path / "aB.tmp").touch()
    alike = (tmp_path / "aB").exists()
    assert folds(tmp_path, "Ab") == alike
    data, codec = keyed("pictures", ["a", "A", "b"], of_rows=True), load(TokenDataset("pictures").spec)
    found = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: found(path) or Path(path).name == MARKER.swapcase())
    counts = detokenize(data, codec, tmp_path / "out", first=3)
    assert (counts["written"], counts["skipped"], counts["n_failed"]) == (3, 0, 0)
    assert {"a.png", "A.png.png", "b.png"} <= set(os.listdir(tmp_path / "out"))


@pytest.mark.parametrize("key", ["con", "a/NUL.png", "lpt1.tar.png", "a./b", "a /b", "a:b", "a?", 'a"', "a\x01", "Aux "])
def test_a_name_that_windows_does_not_make(key):
    assert of_windows(key)
    assert not of_windows("console/a.b/nul_.png")


def test_names_that_are_too_long_are_rows_and_the_others_are_written(tmp_path):
    keys = [
        "a" * 251,
        "a" * 252,
        "\u00e9" * 125,
        "\u00e9" * 126,
        "\u65e5" * 83,
        "\u65e5" * 84,
        "a" * 300,
        "\U0001f600" * 250,
    ]
    data = keyed("pictures", keys, of_rows=True)
    codec = load(data.spec)
    count = min(len(keys), len(data))
    fits = [key for key in keys[:count] if len(os.fsencode(key)) <= 251]
    counts = detokenize(data, codec, tmp_path / "out", first=count)
    assert (counts["written"], counts["failed_by_code"]) == (len(fits), {"name_too_long": count - len(fits)})
    assert {f"{key}.png" for key in fits} <= set(os.listdir(tmp_path / "out"))
    again = detokenize(data, codec, tmp_path / "out", first=count)
    assert (again["written"], again["skipped"], again["n_failed"]) == (0, len(fits), count - len(fits))


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "..", "a//b", "a/", "a\0b", "./a", "a/./b", "http://x/y", "\\a"])
def test_a_key_that_can_be_no_name(key):
    names = PictureNames()
    name, problem = names(key)
    assert not name
    assert problem
    assert names("a") == ("a.png", "")


def keyed(name, keys, of_rows=False):
    """An opened data set whose items, and rows, have other keys; `of_rows`: only items with tokens are counted."""
    data = TokenDataset(name)
    items = list(data.plan.source.items)
    given = {row["key"]: key for row, key in zip(data, keys, strict=False)} if of_rows else {}
    given = given or {item.key: key for item, key in zip(items, keys, strict=False)}
    data.plan.source.items = type(data.plan.source.items).of(
        [item._replace(key=given.get(item.key, item.key)) for item in items]
    )
    read = data.read
    data.read = lambda entry: [{**row, "key": given.get(row["key"], row["key"])} for row in read(entry)]
    return data


def test_bad_keys_fail_and_the_others_are_written(tmp_path, monkeypatch, capsys):
    keys = ["../x", "a" * 300, "/etc/x", "b", "b.png", "c\x1b[31m/..", "d/" * 3000 + "e"]
    data = keyed("webdataset", keys)
    codec, out = load(data.spec), tmp_path / "out"
    found = detokenize(data, codec, out)
    assert (found["written"], found["skipped"], found["n_failed"]) == (3, 0, 5)
    assert found["failed_by_code"] == {"bad_key": 3, "name_too_long": 2}
    assert [row["key"] for row in found["failed"]] == [keys[i] for i in (0, 1, 2, 5, 6)]
    assert sorted(p.name for p in out.rglob("*.png")) == ["007.png", "b.png", "b.png.png"]
    assert not (tmp_path / "x.png").exists()
    again = detokenize(data, codec, out)
    assert (again["written"], again["skipped"], again["n_failed"]) == (0, 3, 5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "NAMED", 2)
        assert len(detokenize(data, codec, out)["failed"]) == 2
    monkeypatch.setattr("noisebook.datasets.reader.TokenDataset", lambda *_, **__: data)
    assert main(["detokenize", "webdataset", "-o", str(out)]) == 3
    said = capsys.readouterr()
    assert "0 written, 3 were there, 5 failed (3 bad_key, 2 name_too_long)" in said.out
    assert "c\\x1b[31m/..: bad_key: " in said.err
    assert "\x1b[31m" not in said.err
    assert main(["detokenize", "webdataset", "-o", str(out), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["n_failed"] == 5


def test_names_do_not_depend_on_where_a_run_begins_or_ends(tmp_path):
    """--first, what was there, and shards that are not done yet: the picture of a row has one name."""
    keys = ["a", "x", "x.png", "a.png", "y", "a.png.png", "z", "x.png.png"]
    data = keyed("webdataset", keys)
    codec = load(data.spec)
    detokenize(data, codec, tmp_path / "whole")
    expected = {p.relative_to(tmp_path / "whole"): p.read_bytes() for p in (tmp_path / "whole").rglob("*.png")}
    assert len(expected) == 8
    for first in (3, 6, None):
        detokenize(data, codec, tmp_path / "parts", first=first)
    done = data.done
    for part in (done[2:], done[1:], done):
        data.done = part
        detokenize(data, codec, tmp_path / "other", batch_size=1)
    for name in ("parts", "other"):
        found = {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.png")}
        assert found.keys() == expected.keys()
    assert {p.relative_to(tmp_path / "parts"): p.read_bytes() for p in (tmp_path / "parts").rglob("*.png")} == expected


def test_a_folder_with_something_else_is_refused_and_nothing_written(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["detokenize", "webdataset", "-o", str(out)]
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert main(command) == 7
    assert "something else is there (thesis.txt): choose an empty folder" in capsys.readouterr().err
    assert os.listdir(out) == ["thesis.txt"]
    (out / "thesis.txt").unlink()
    assert main(command) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    for other in (["detokenize", "parquet", "-o", str(out)], [*command, "--steps", "1"]):
        assert main(other) == 7
        assert "pictures of another data set, codec or number of steps" in capsys.readouterr().err
    (out / "mine.png").write_bytes(b"mine")
    Path(out, "000.png").unlink()
    assert main(command) == 0
    assert (out / "mine.png").read_bytes() == b"mine"
    assert all(p.stat().st_mtime_ns == time for p, time in before.items() if p.name != "000.png")
    (out / MARKER).write_bytes(b"[" * 100_000)
    assert main(command) == 7
    assert "damaged" in capsys.readouterr().err
    shutil.rmtree(out)
    out.write_bytes(b"a file")
    assert main(command) == 7
    assert out.read_bytes() == b"a file"


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_what_is_no_file_is_left_alone(tmp_path):
    data = TokenDataset("webdataset")
    codec, out = load(data.spec), tmp_path / "out"
    detokenize(data, codec, out, first=1)
    (tmp_path / "precious").write_bytes(b"mine")
    (out / "001.png").symlink_to(tmp_path / "precious")
    (out / "002.png").mkdir()
    found = detokenize(data, codec, out)
    assert (found["written"], found["skipped"], found["failed_by_code"]) == (5, 1, {"taken": 2})
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_images_beyond_the_limit_fail_and_batches_are_bounded_by_memory(tmp_path, monkeypatch):
    data = TokenDataset("pictures")
    codec = load(data.spec)
    sizes = [row["height"] * row["width"] for row in data]
    found = detokenize(data, codec, tmp_path / "a", limits=Limits(pixels=sorted(sizes)[3]))
    assert found["failed_by_code"] == {"too_large": sum(size > sorted(sizes)[3] for size in sizes)}
    assert found["written"] == len(sizes) - found["n_failed"] > 0
    decoded = []
    monkeypatch.setattr(
        module, "decoded", lambda codec, rows, *_: decoded.append(len(rows)) or np.zeros((len(rows), 9, 9, 3), np.uint8)
    )
    same = TokenDataset("webdataset")
    detokenize(same, load(same.spec), tmp_path / "b", limits=Limits(memory=module.memory.needed(700, "cpu")))
    assert decoded == [2, 2, 2, 2]  # of 320 pixels


def test_a_decode_of_many_network_calls_is_refused(tmp_path, capsys):
    assert main(["detokenize", "webdataset", "-o", str(tmp_path / "out"), "--max-network-calls", "1"]) == 4
    assert "more than the limit of 1: --max-network-calls raises it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_codewords_that_cost_too_much_are_refused(tmp_path, monkeypatch):
    """Codewords that are made one by one count as calls in data sets as they do in files."""
    monkeypatch.setattr(files, "CODEWORDS", 1)
    data = TokenDataset("webdataset")
    spec = replace(data.spec, codebook="independent")
    tokens = sum(run.count for _, run in spec.runs_for(data[0]["height"], data[0]["width"]))
    assert tokens > 1
    codec, data.plan.settings = load(spec), replace(data.plan.settings, spec=spec)
    with pytest.raises(FormatError, match="--max-network-calls raises it"):
        detokenize(data, codec, tmp_path / "out", limits=Limits(network_calls=codec.nfe + 1))
    assert not (tmp_path / "out").exists()


def test_keys_that_are_not_those_of_the_plan_are_an_error(tmp_path):
    data = TokenDataset("webdataset")
    read = data.read
    data.read = lambda entry: [{**row, "key": "other"} for row in read(entry)]
    with pytest.raises(FormatError, match="its keys are not those of the plan"):
        detokenize(data, load(data.spec), tmp_path / "out")
