"""`noisebook.datasets.tokenize`: the data sets of the command, without the command line."""

import json
import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import noisebook
from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main

pytest.importorskip("pyarrow")

from noisebook.datasets import CodecRecipe, Rank, TokenDataset, progress, tokenize
from noisebook.datasets.recipe import decoder
from noisebook.datasets.table import token_words
from noisebook.errors import DatasetError, NoisebookError, SpecError

COUNT, SIDE = 7, 16
CHANGES = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
PLAIN = {**CHANGES, "dtype": "float32"}  # of which a plan of one's own codec says nothing
SIZES = {"shard_size": 3, "batch_size": 2}
SIZE_OPTIONS = ["--shard-size", "3", "--batch-size", "2", "--workers", "0"]


@pytest.fixture
def net(tmp_path):
    return tiny_backbone(tmp_path / "tiny.safetensors")


@pytest.fixture
def pictures(tmp_path, fresh):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, x in enumerate(random_images(fresh, COUNT, SIDE, SIDE)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def content(out: Path) -> tuple[str, dict[str, bytes]]:
    """(hash of the plan, shards)."""
    files = {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}
    return json.loads((out / "plan.json").read_text())["hash"], files


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (TINY, {"changes": CHANGES}),
        (["--rule", "top", *TINY, "--effort", "2"], {"changes": {"rule": "top", **CHANGES}, "effort": 2}),
        ([*TINY, "--channels-last", "--no-graphs"], {"changes": CHANGES, "channels_last": True, "graphs": False}),
        (["--bpp", "1", "--max-nfe", "4", "--seed", "3"], {"bpp": 1, "max_nfe": 4, "changes": {"seed": 3}}),
    ],
)
def test_the_same_options_give_the_data_set_of_the_command(tmp_path, net, pictures, options, recipe):
    backbone = "gaussian-prior" if "bpp" in recipe else net
    command = ["tokenize", str(pictures), "-o", str(tmp_path / "a"), "--backbone", backbone, *options, *SIZE_OPTIONS]
    assert main(command) == 0
    counts = tokenize(pictures, tmp_path / "b", codec=CodecRecipe(backbone=backbone, **recipe), **SIZES)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert counts == {
        "n_found": COUNT,
        "n_in": COUNT,
        "n_passed_over": 0,
        "passed_over": {},
        "other_files": {},
        "n_ok": COUNT,
        "n_failed": 0,
        "shards": 3,
        "of_shards": 3,
        "failed_by_code": {},
        "failed": [],
        "remarks": 0,
    }
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in "ab"]
    assert [list(plan["settings"]["network"]) for plan in plans] == [list(plans[0]["settings"]["network"])] * 2


def test_one_goes_on_where_the_other_stopped(tmp_path, net, pictures):
    recipe = CodecRecipe(backbone=net, changes=CHANGES)
    tokenize(pictures, tmp_path / "whole", codec=recipe, **SIZES)
    tokenize([str(pictures)], str(tmp_path / "out"), codec=recipe, rank=Rank(1, 2), **SIZES)
    assert list(content(tmp_path / "out")[1]) == ["000001.parquet"]
    assert "n_ok" not in json.loads((tmp_path / "out/plan.json").read_text())
    with pytest.raises(DatasetError, match="--resume goes on with it"):
        tokenize(pictures, tmp_path / "out", codec=recipe, **SIZES)
    command = ["tokenize", str(pictures), "-o", str(tmp_path / "out"), "--backbone", net, *TINY, *SIZE_OPTIONS]
    assert main([*command, "--resume"]) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    (tmp_path / "out/ledger/000002.json").unlink()
    tokenize(pictures, tmp_path / "out", codec=recipe, resume=True, **SIZES)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    with pytest.raises(DatasetError, match=r"its settings differ \(network\)"):
        tokenize(
            pictures, tmp_path / "out", codec=CodecRecipe(backbone=net, changes=CHANGES, effort=0), resume=True, **SIZES
        )


def test_the_last_rank_writes_the_counts_of_all(tmp_path, net, pictures):
    out, recipe = tmp_path / "out", CodecRecipe(backbone=net, changes=CHANGES)
    for number in (1, 0):
        tokenize(pictures, out, codec=recipe, rank=Rank(number, 2), resume=True, **SIZES)
        plan = json.loads((out / "plan.json").read_text())
        assert plan.get("n_ok") == (None if number else COUNT)
    assert plan["n_found"] == plan["n_ok"] + plan["n_failed"] + plan["n_passed_over"]


def test_a_codec_of_ones_own(tmp_path, net, pictures):
    """A live one, and a function: their tokens are those of the recipe; the plan records less of how they were made."""
    made = []

    def make(device, size):
        made.append((device, size))
        return noisebook.load(backbone=net, device=device, **PLAIN)

    tokenize(pictures, tmp_path / "recipe", codec=CodecRecipe(backbone=net, changes=CHANGES, dtype="float32"), **SIZES)
    tokenize(pictures, tmp_path / "function", codec=make, **SIZES)
    assert made == [("cpu", (SIDE, SIDE))]
    tokenize(pictures, tmp_path / "live", codec=noisebook.load(backbone=net, **PLAIN), device="cpu", **SIZES)
    assert content(tmp_path / "live") == content(tmp_path / "function")
    tokens = [[row["tokens"].tolist() for row in TokenDataset(tmp_path / name)] for name in ("recipe", "function")]
    assert tokens[0] == tokens[1]
    assert TokenDataset(tmp_path / "live").plan.settings.network == {"device": "cpu"}


@pytest.mark.parametrize(
    ("codec", "options", "message"),
    [
        ("live", {"engine": "ray"}, "stays in its process"),
        ("live", {"device": "meta"}, "works where it is"),
        ("live", {"device": "nonsense"}, "cannot be used"),
        ("photo", {"device": "nonsense"}, "cannot be used"),
        ("nonsense", {}, "no preset 'nonsense'"),
        (7, {}, "not int"),
        ("photo", {"engine": "slurm"}, "engine must be local or ray"),
        ("photo", {"shard_size": 0}, "shard_size must be at least 1"),
        (CodecRecipe(bpp=1, backbone="gaussian-prior"), {"mixed_sizes": True}, "one size of images"),
        (CodecRecipe(changes={"nonsense": 1}), {}, "no option nonsense"),
    ],
)
def test_what_cannot_be_is_an_error_and_leaves_no_plan(tmp_path, net, pictures, codec, options, message):
    if codec == "live":
        codec = noisebook.load(backbone=net, **CHANGES)
    with pytest.raises(SpecError, match=message):
        tokenize(pictures, tmp_path / "out", codec=codec, **options)
    assert not (tmp_path / "out/plan.json").exists()


@pytest.mark.parametrize(
    "fields", [{"max_nfe": 4}, {"curve": "x"}, {"bpp": 1, "preset": "photo"}, {"bpp": 1, "changes": {"steps": 4}}]
)
def test_a_recipe_that_contradicts_itself_is_refused(fields):
    with pytest.raises(SpecError, match=r"(go|goes) with --"):
        CodecRecipe(**fields)


def test_a_recipe_is_a_value():
    conditions = {"guidance": 2, "label": 3, "prompt": None}
    recipe = CodecRecipe("photo-low", device="cuda:1", compile=False, dtype="float32", conditions=conditions)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(AttributeError):
        recipe.preset = "photo"  # type: ignore[misc]
    assert recipe.network() == {
        "dtype": "float32",
        "channels_last": "False",
        "compile": "False",
        "effort": "1",
        "candidates": "1",
        "device": "cuda",
        "guidance": "2.0",
        "label": "3",
    }
    assert replace(recipe, compile=None).network()["compile"] == ""  # for the plan to say
    assert CodecRecipe("photo-low").network()["dtype"] == ""


def test_a_decoder_is_conditioned_as_the_plan_says(net, monkeypatch):
    from noisebook.datasets import recipe as module

    given = {}
    monkeypatch.setattr(module, "load", lambda spec, **options: given.update(options))
    conditions = {"guidance": 2, "label": 3, "prompt": "a cat", "autoencoder": "x"}
    network = CodecRecipe(dtype="float32", conditions=conditions).network()
    decoder(noisebook.load(backbone=net, **CHANGES).spec, network, "somewhere")
    assert given == {
        "backbone": "somewhere",
        "device": "cpu",
        "dtype": "float32",
        "conditions": {"guidance": 2.0, "label": 3, "prompt": "a cat"},
        "realism_network": None,
    }


WORDS = [
    ({}, "34 tokens an image: 2 of 1,024 values (start), 32 of 256 values; 276 bits"),
    ({"rule": "poisson", "start_budget": 0}, ""),
    ({"rule": "pursuit", "coefficient_bits": 2}, "62 tokens an image: 2 of 1,024 values (start), 32 of 256 values, "),
]


@pytest.mark.parametrize(("changes", "words"), WORDS)
def test_a_line_names_all_vocabularies(net, changes, words):
    start = {"start_budget": 2, "start_vocab_size": 1024}
    codec = noisebook.load(backbone=net, **CHANGES | start | changes)
    assert token_words(codec.spec, 16, 16).startswith(words)
    assert bool(words) == bool(token_words(codec.spec, 16, 16))


def test_lines_for_people_go_where_they_are_wanted(tmp_path, net, pictures, caplog, capsys, monkeypatch):
    recipe, lines = CodecRecipe(backbone=net, changes=CHANGES), []
    monkeypatch.setitem(progress.EVERY, "shard", 0.0)
    tokenize(pictures, tmp_path / "a", codec=recipe, log=lines.append, **SIZES)
    shown = capsys.readouterr().err.splitlines()
    assert [line.rsplit(", ", 1)[0] for line in shown][-1] == f"3 of 3 shards, {COUNT} of {COUNT} images"
    assert [line[: len("1 of 3 shards")] for line in shown] == [f"{n} of 3 shards" for n in (1, 2, 3)]
    monkeypatch.setitem(progress.EVERY, "shard", 1e6)  # of very many shards, too near to the line before
    assert lines[-2] == "32 tokens an image: 32 of 256 values; 256 bits"
    assert lines[-1] == f"0 shards done, 3 to do ({COUNT} images, 3 shards)"
    assert lines[0].startswith("warning: ")
    tokenize(pictures, tmp_path / "b", codec=recipe, **SIZES)
    stdout, shown = capsys.readouterr()
    assert not stdout
    assert shown.startswith("3 of 3 shards")
    assert len(shown.splitlines()) == 1
    assert not caplog.records
    with caplog.at_level(logging.INFO, "noisebook.datasets"):
        tokenize(pictures, tmp_path / "b", codec=recipe, resume=True, **SIZES)
    assert "3 shards done, 0 to do" in caplog.text


def test_failures_are_counted_and_not_raised(tmp_path, net, pictures):
    (pictures / "bad.png").write_bytes(b"no picture")
    recipe = CodecRecipe(backbone=net, changes=CHANGES)
    counts = tokenize(pictures, tmp_path / "out", codec=recipe, **SIZES)
    assert (counts["n_ok"], counts["failed_by_code"]) == (COUNT, {"not_an_image": 1})
    with pytest.raises(NoisebookError, match="more than --max-errors 0"):
        tokenize(pictures, tmp_path / "strict", codec=recipe, max_errors=0, **SIZES)


def test_processes_that_decode_import_no_torch():
    code = "import sys, noisebook.datasets.decoding as d; print([m for m in ('torch', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("inputs", "output"), [("", "out"), ([], "out"), (["in", ""], "out"), ("in", "")])
def test_an_empty_name_is_not_the_current_folder(inputs, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="empty name"):
        tokenize(inputs, output)
    assert not list(tmp_path.iterdir())
