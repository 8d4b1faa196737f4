"""Under the dtype `auto` a plan says what it was, and whoever goes on with the data set reads it there."""

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import torch
from PIL import Image

import noisebook
from common import Shrink
from noisebook import backbones
from noisebook.backbones import precision
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.datasets import CodecRecipe, TokenDataset, choices, tokenize
from noisebook.datasets.recipe import decoder
from noisebook.errors import DatasetError

KNOBS = {"steps": 2, "budget": 2, "budget_last": 2, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
SIZES = {"shard_size": 2, "batch_size": 2, "workers": 0}


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> str:
    """A small network whose corrections are not zero."""
    torch.manual_seed(0)
    model = ConvDenoiser(backbones.load("gaussian-prior"), widths=(8, 8), blocks=1, embedding=8)
    torch.nn.init.normal_(model.leave.weight, std=0.05)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    write_checkpoint(path, "convnet", model.config, checkpoint_tensors(model))
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("in")
    for i in range(4):
        Image.fromarray(np.full((32, 32, 3), 50 * i, np.uint8)).save(folder / f"{i}.png")
    return str(folder)


def processor(monkeypatch, has: bool) -> None:
    """A CPU with the instructions, or without."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: has and str(device) == "cpu")


def plan_of(folder) -> dict:
    return json.loads((folder / "plan.json").read_text())


def shards_of(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "shards").iterdir())]


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_the_plan_says_it_and_another_processor_goes_on_with_it(first, then, net, pictures, tmp_path, monkeypatch):
    """The shards that are made later are those of a run that nobody has stopped."""
    recipe, value, said = CodecRecipe(backbone=net, changes=KNOBS), "bfloat16" if first else "float32", []
    processor(monkeypatch, first)
    tokenize(pictures, tmp_path / "whole", codec=recipe, log=said.append, **SIZES)
    assert plan_of(tmp_path / "whole")["settings"]["network"]["dtype"] == value
    assert [line for line in said if line.startswith("dtype: bfloat16")] == [line for line in said if "dtype" in line]
    assert any("--dtype float32" in line for line in said) == first
    tokenize(pictures, tmp_path / "out", codec=recipe, **SIZES)
    for path in [*(tmp_path / "out/shards").glob("*1.parquet"), *(tmp_path / "out/ledger").glob("*1.json")]:
        path.unlink()
    made = []
    encode = noisebook.codec.codec.Codec.encode
    monkeypatch.setattr(noisebook.codec.codec.Codec, "encode", lambda self, *a: made.append(self.dtype) or encode(self, *a))
    processor(monkeypatch, then)
    tokenize(pictures, tmp_path / "out", codec=recipe, resume=True, **SIZES)
    assert set(made) == {value}
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
    data = TokenDataset(str(tmp_path / "out"))
    assert decoder(data.spec, data.plan.settings.network, net).dtype == value  # as detokenize and report decode
    other = "float32" if first else "bfloat16"
    with pytest.raises(DatasetError, match="network"):
        tokenize(
            pictures, tmp_path / "out", codec=CodecRecipe(backbone=net, changes=KNOBS, dtype=other), resume=True, **SIZES
        )


def test_a_plan_of_an_earlier_noisebook_is_gone_on_with_in_float32(net, pictures, tmp_path, monkeypatch):
    """Its default was float32, which it has written."""
    old = CodecRecipe(backbone=net, changes=KNOBS, dtype="float32")
    tokenize(pictures, tmp_path / "out", codec=old, **SIZES)
    before = (tmp_path / "out/plan.json").read_bytes()
    processor(monkeypatch, True)
    tokenize(pictures, tmp_path / "out", codec=CodecRecipe(backbone=net, changes=KNOBS), resume=True, **SIZES)
    assert (tmp_path / "out/plan.json").read_bytes() == before
    assert choices.chosen({"dtype": ""}, {}, {"dtype": pytest.fail}) == {"dtype": "float32"}  # one that does not say it


def test_a_rate_is_computed_as_the_plan_says(net, pictures, tmp_path, monkeypatch):
    processor(monkeypatch, True)
    recipe = CodecRecipe(backbone="cifar10-flow", bpp=0.5, max_nfe=3)
    assert recipe.load((32, 32)).dtype == "bfloat16"
    assert recipe.load((32, 32), {"dtype": "float32"}).dtype == "float32"


def test_a_codec_of_the_callers_own_is_in_the_plan_where_it_is_not_float32(net, pictures, tmp_path, monkeypatch):
    """The plan of one in float32 is that of an earlier noisebook; whose data sets are not gone on with in another dtype."""
    processor(monkeypatch, True)
    plain, fast = (noisebook.load(backbone=net, dtype=dtype, **KNOBS) for dtype in ("float32", "auto"))
    tokenize(pictures, tmp_path / "plain", codec=plain, **SIZES)
    assert plan_of(tmp_path / "plain")["settings"]["network"] == {"device": "cpu"}
    tokenize(pictures, tmp_path / "fast", codec=fast, **SIZES)
    assert plan_of(tmp_path / "fast")["settings"]["network"] == {"device": "cpu", "dtype": "bfloat16"}
    tokenize(pictures, tmp_path / "fast", codec=fast, resume=True, **SIZES)
    with pytest.raises(DatasetError, match="network"):
        tokenize(pictures, tmp_path / "plain", codec=fast, resume=True, **SIZES)


def test_a_driver_answers_for_devices_that_are_elsewhere(monkeypatch, net):
    """Its own codec is on the CPU."""
    said, own, prior = [], noisebook.load(backbone=net, dtype="float32", **KNOBS), noisebook.load(backbone=Shrink(), **KNOBS)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: str(device) == "cuda")
    assert choices.dtype(own, "cuda", said.append) == "bfloat16"
    assert "--dtype float32" in said.pop()
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choices.dtype(own, "cuda", said.append) == "float32"
    assert "no GPU is seen" in said.pop()
    assert choices.dtype(own, "cpu", said.append) == choices.dtype(prior, "cuda", said.append) == "float32"
    assert not said
