"""Every kind of picture file that people have: the right pixels or reason, the same from every command and container.

The files are made by code (`pngs.py`, `tiffs.py`, ...), the right pixels come from the arrays that they were made of."""

import io
import json
import posixpath
import re
import subprocess
import sys
import tarfile
import warnings

import numpy as np
import pytest

import noisebook
from common import TINY, Shrink, tiny_backbone
from noisebook.cli.main import main
from noisebook.datasets import TokenDataset, tokenize
from noisebook.datasets.decoding import Picture, decode
from noisebook.errors import ImageError
from noisebook.images.io import SUFFIXES
from noisebook.images.reading import REMARKS, read_image
from zoo import colours, jpegs, others, pngs, strangers, tiffs
from zoo.animal import smooth

ZOO = [animal for kind in (pngs, tiffs, jpegs, others, strangers) for animal in kind.animals()]
STEMS = {animal.name.partition(".")[0]: animal for animal in ZOO}


def test_the_zoo_is_large_and_its_names_are_its_own():
    assert len(STEMS) == len(ZOO) > 400
    assert {remark for animal in ZOO for remark in animal.remarks} == set(REMARKS)


def wrong(pixels, animal):
    """What is wrong with pixels, or ""."""
    if pixels.shape != animal.pixels.shape:
        return f"{pixels.shape} instead of {animal.pixels.shape}"
    off = np.abs(pixels.astype(int) - animal.pixels).max()
    return f"{off} grey levels off" if off > animal.within else ""


def test_pixels_remarks_and_reasons():
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for animal in ZOO:
            answer = decode(animal.data, animal.name, 3)
            if animal.pixels is None:
                if isinstance(answer, Picture) or answer.code != animal.code or not re.search(animal.words, answer.message):
                    found[animal.name] = answer
            elif not isinstance(answer, Picture):
                found[animal.name] = answer
            elif problem := wrong(answer.pixels, animal):
                found[animal.name] = problem
            elif set(answer.remarks) != animal.remarks:
                found[animal.name] = f"{answer.remarks} instead of {set(animal.remarks)}"
    assert found == {}


def test_the_reader_of_commands_reads_files_as_the_reader_of_data_sets_reads_bytes(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for animal in ZOO:
            (tmp_path / animal.name).write_bytes(animal.data)
            if animal.pixels is None:
                with pytest.raises(ImageError, match=animal.words):
                    read_image(tmp_path / animal.name)
            else:
                pixels = read_image(tmp_path / animal.name)
                assert (pixels == read_image(io.BytesIO(animal.data))).all(), animal.name
                assert wrong(pixels, animal) == "", animal.name
                grey = read_image(tmp_path / animal.name, 1)
                weights = pixels.astype(int) @ [19595, 38470, 7471]  # as ITU-R 601 says, and Pillow does
                assert np.abs(grey[:, :, 0] - (weights >> 16)).max() <= 1, animal.name


def listed(animal):
    """Whether a folder or a tar takes it for a picture, by its name."""
    return animal.name.endswith(SUFFIXES)


def expected(animals):
    return {animal.name: animal.code for animal in animals if animal.pixels is None}


def test_a_folder_a_tar_and_a_parquet_file_give_the_same_rows(tmp_path):
    """Each holds all of the zoo. A Parquet file has no names to go by, and so a row for what is no picture at all."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "zoo.tar", "w") as tar:
        for animal in ZOO:
            (tmp_path / "folder" / animal.name).write_bytes(animal.data)
            tar.add(tmp_path / "folder" / animal.name, animal.name)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": animal.data, "path": animal.name} for animal in ZOO], struct)
    pq.write_table(pa.table({"image": images}), tmp_path / "zoo.parquet")
    codec = noisebook.load("photo-low", backbone=Shrink(), steps=4, budget=8, budget_last=8, vocab_size=256, start_budget=0)
    animal_of = {
        "folder": lambda key: STEMS[key.partition(".")[0]],
        "zoo.tar": lambda key: STEMS[key.partition(".")[0]],
        "zoo.parquet": lambda key: ZOO[int(key.rpartition("/")[2])],
    }
    found = {}
    for place, named in animal_of.items():
        out = tmp_path / "tokens" / place
        counts = tokenize(tmp_path / place, out, codec=codec, shard_size=1000, batch_size=64, workers=0, mixed_sizes=True)
        data = TokenDataset(out, inputs=tmp_path / place)
        rows = {}
        for i, row in enumerate(data):
            animal = named(row["key"])
            rows[animal.name] = row["tokens"].tobytes()
            assert wrong(data.original(i), animal) == "", (place, animal.name)
        ledger = data.ledgers[0]
        failed = {named(f["key"]).name: f["code"] for f in ledger["failed"]}
        remarks = {(named(r["key"]).name, r["code"]) for r in ledger["remarks"]}
        found[place] = rows, failed, remarks
        taken = ZOO if place == "zoo.parquet" else [animal for animal in ZOO if listed(animal)]
        assert failed == expected(taken)
        nameless = {"wrong_extension"} if place == "zoo.parquet" else set()
        assert remarks == {(animal.name, remark) for animal in taken for remark in animal.remarks - nameless}
        assert len(rows) + len(failed) == len(taken)
        assert (counts["n_ok"], counts["n_failed"], counts["n_passed_over"]) == (len(rows), len(failed), 0)
        assert sum(counts["other_files"].values()) == len(ZOO) - len(taken)
        assert counts["n_found"] == counts["n_ok"] + counts["n_failed"] + counts["n_passed_over"]
        plan = json.loads((out / "plan.json").read_text())
        assert all(plan[name] == counts[name] for name in ("n_found", "n_ok", "n_failed", "n_passed_over"))
    assert found["folder"] == found["zoo.tar"]
    rows = found["zoo.parquet"][0]  # also of a name that no folder takes for a picture's
    assert {name: tokens for name, tokens in rows.items() if listed(STEMS[name.partition(".")[0]])} == found["folder"][0]


@pytest.mark.slow
def test_encode_makes_a_file_of_every_picture_and_a_row_of_every_other(tmp_path, capsys):
    """What `tokenize` makes of each the test above says."""
    (tmp_path / "folder").mkdir()
    animals = [animal for animal in ZOO if listed(animal)]
    for animal in animals:
        (tmp_path / "folder" / animal.name).write_bytes(animal.data)
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    out = tmp_path / "out"
    assert main(["encode", str(tmp_path / "folder"), "-o", str(out), "--backbone", net, *TINY, "--json"]) != 0
    answers = {}
    for row in json.loads(capsys.readouterr().out)["images"]:
        answers[posixpath.basename(row["name"])] = row
    assert set(answers) == {animal.name for animal in animals}
    for animal in animals:
        row = answers[animal.name]
        if animal.pixels is None:
            assert re.search(animal.words, row["error"].partition(": ")[2]), animal.name
        else:
            assert (row["height"], row["width"]) == animal.pixels.shape[:2], animal.name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("name", ["plain.jpg", "progressive.jpg", "profile.jpg", "plain.png", "alpha.png", "deep.png"])
def test_a_picture_of_48_megapixels_is_read_in_12_bytes_a_pixel(tmp_path, name):
    from PIL import Image

    rgb = np.broadcast_to(np.repeat(np.repeat(smooth(60, 80), 100, 0), 100, 1), (6000, 8000, 3))
    how = {
        "progressive.jpg": {"progressive": True, "subsampling": 0},
        "profile.jpg": {"icc_profile": colours.rgb_profile(colours.P3, 0)},
    }
    picture = Image.fromarray(rgb)
    if name == "alpha.png":
        picture = picture.convert("RGBA")
    if name == "deep.png":
        picture = Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257)
    picture.save(tmp_path / name, **how.get(name, {"compress_level": 1} if name.endswith("png") else {}))
    picture.resize((80, 60)).save(tmp_path / f"small-{name}", **how.get(name, {}))
    code = (
        "import re, sys\nfrom noisebook.images.reading import read_image\n"
        "def peak():\n    return 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "read_image(sys.argv[1])\nbefore = peak()\n"
        "assert read_image(sys.argv[2]).shape == (6000, 8000, 3)\n"
        "print((peak() - before) / 48e6)\n"
    )
    paths = [str(tmp_path / f"small-{name}"), str(tmp_path / name)]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert 3 < float(done.stdout) < 12
