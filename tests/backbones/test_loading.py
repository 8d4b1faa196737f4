"""Loading a folder: its fingerprint and the one it had before; weights straight into their place, and no random draws."""

import copy
import hashlib
import json
import os
import pickle
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import OPTIONS, diffusers, edit, noise, pixel_unet, saver

import noisebook
from common import TINY, random_images
from noisebook import backbones
from noisebook.backbones import Backbone, fingerprint_of
from noisebook.backbones.diffusers import parts
from noisebook.backbones.diffusers.folder import from_folder
from noisebook.backbones.skeleton import computed, skeleton
from noisebook.cli.main import main
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError, CodecMismatchError, SpecError
from noisebook.images.targets import Aim, Target
from noisebook.runtime import cache, hashes
from noisebook.spec.curve import Curve

FEW = {"steps": 2, "budget": 2, "budget_last": 2, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> (folder, the pipeline that was saved there)."""
    return saver(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """The folder of a model of pixels of any size."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pixels") / "tiny"
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    diffusers.DDPMPipeline(unet=pixel_unet(sample_size=None), scheduler=scheduler).save_pretrained(path)
    return path


@contextmanager
def of_before():
    """Inside, folders have the fingerprints that the first version gave them."""
    real = Backbone.identify_as
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "identify_as", lambda self, now, earlier: real(self, earlier(), lambda: "f" * 64))
        yield


def public(path: Path) -> dict:
    return {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("_")}


def weights(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def version_1(config: dict, tensors: dict) -> str:
    """Fingerprints as they were, written down once more."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    data = path.read_bytes()
    assert len(data) < 2**24, "one piece"
    return hashlib.sha256(hashlib.sha256(data).digest()).hexdigest()


def version_2(said: dict) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---- what a fingerprint is ----------------------------------------------------------------------------------------------
def test_fingerprints_of_tensors_are_what_they_were(fresh):
    """Those of shipped networks and of one-file checkpoints."""
    tensors = {
        "b": torch.from_numpy(fresh.random((3, 5), np.float32)).T,
        "a": torch.from_numpy(fresh.random((4,), np.float32)).bfloat16(),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "grad": torch.nn.Parameter(torch.ones(2)),
    }
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    assert fingerprint_of({"x": [1, None]}, tensors) == version_1({"x": [1, None]}, plain)
    known = "1ddf179607fce90a81680f861a054a3f64dc38bcac5581a09b1072063b874e30"
    assert fingerprint_of({"kind": "known"}, {"w": torch.arange(6.0).reshape(2, 3)}) == known


def test_a_folder_of_pixels(pixels):
    """Of files, and the one of tensors that it had before."""
    backbone, unet = from_folder(pixels), pixels / "unet"
    config, schedule = public(unet / "config.json"), public(pixels / "scheduler/scheduler_config.json")
    network = {"class": "UNet2DModel", "config": config, "files": [file_hash(weights(unet))]}
    scheduler = {**schedule, "class": "DDPMScheduler"}
    assert backbone.fingerprint == version_2({"fingerprint": 2, "parts": {"network": network}, "scheduler": scheduler})
    old = version_1({"config": config, "scheduler": schedule}, load_file(weights(unet)))
    assert backbone.earlier_fingerprints() == (old,)
    assert backbone.answers_to(old)
    assert not backbone.answers_to(hashlib.sha256(old.encode()).hexdigest())


def test_a_pipeline(saved):
    path = saved("sd")[0]
    backbone = from_folder(path, prompt="a cat", guidance=2)
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    configs = {name: public(path / name / "config.json") for name in classes}
    kind = json.loads((path / "scheduler/scheduler_config.json").read_text())["_class_name"]
    tokenizer = saved("sd")[1].tokenizer
    tokens = [tokenizer(text, padding="max_length", max_length=12).input_ids for text in ("", "a cat")]
    header = {
        "scheduler": {**public(path / "scheduler/scheduler_config.json"), "class": kind},
        "guidance": 2.0,
        "tokens": {"tokenizer": tokens},
        "zeros": False,
    }
    said = {
        name: {"class": classes[name], "config": configs[name], "files": [file_hash(weights(path / name))]}
        for name in classes
    }
    assert backbone.fingerprint == version_2({"fingerprint": 2, "parts": said, **header})
    old = {name: version_1(configs[name], load_file(weights(path / name))) for name in classes}
    assert backbone.earlier_fingerprints() == (version_2({"parts": old, **header}),)


def test_the_earlier_one_is_made_once_and_only_where_it_is_asked_for(pixels, monkeypatch):
    made = []
    tensors = parts.Part.tensors
    backbone = backbones.load(pixels)
    monkeypatch.setattr(parts.Part, "tensors", lambda self: made.append(self) or tensors(self))
    codec = noisebook.load("photo", backbone=backbone, **FEW)
    assert not made
    old = backbone.earlier_fingerprints()
    assert Codec(replace(codec.spec, fingerprint=old[0]), backbone).spec.fingerprint == old[0]
    assert len(made) == 1


def test_a_folder_of_which_the_class_tells(saved, tmp_path):
    """The same config and the same files, read otherwise."""
    path = shutil.copytree(saved("sd")[0], tmp_path / "copy")
    first = from_folder(path).fingerprint
    edit(path / "model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"])
    try:
        assert from_folder(path).fingerprint != first
    except BackboneError as error:
        assert "text_projection" in str(error)  # noqa: PT017 (that it needs weights of its own will do, too)


def test_files_that_change_are_noticed(pixels, tmp_path):
    path = shutil.copytree(pixels, tmp_path / "copy")
    backbone, file = from_folder(path), weights(path / "unet")
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "new")
    os.replace(tmp_path / "new", file)
    with pytest.raises(BackboneError, match="has changed since it was read: load the model again"):
        backbone.answers_to("0" * 64)
    assert backbone.answers_to(backbone.fingerprint)
    os.remove(file)
    with pytest.raises(BackboneError, match="No such file"):
        backbone.answers_to("0" * 64)


def test_a_file_that_changes_while_it_is_read(pixels, tmp_path, monkeypatch):
    path, tensors = shutil.copytree(pixels, tmp_path / "copy"), parts.Part.tensors

    def and_then(self):
        found = {name: tensor.clone() for name, tensor in tensors(self).items()}
        with open(self.files[0], "rb+") as f:
            f.seek(-1, os.SEEK_END)
            f.write(b"?")
        return found

    monkeypatch.setattr(parts.Part, "tensors", and_then)
    with pytest.raises(BackboneError, match="has changed since it was read"):
        from_folder(path)


def test_the_cache_of_hashes_gives_the_same_fingerprint(saved, tmp_path, monkeypatch):
    path, where = saved("sd")[0], tmp_path / "cache"
    plain = from_folder(path).fingerprint
    monkeypatch.setenv(cache.VARIABLE, str(where))
    monkeypatch.setattr(hashes, "NOTED", 1)
    monkeypatch.setattr(hashes, "SETTLED", -1000.0)
    before = sorted(path.rglob("*"))
    assert from_folder(path).fingerprint == plain
    assert len(json.loads((where / hashes.NOTES).read_text())) == 3
    monkeypatch.setattr(hashes, "_hash_piece", None)  # nothing is hashed now
    assert from_folder(path).fingerprint == plain
    assert sorted(path.rglob("*")) == before, "nothing is written beside a model"


def test_backbones_can_still_be_copied_and_sent(pixels):
    backbone = backbones.load(pixels)
    for again in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert again.fingerprint == backbone.fingerprint
        assert again.earlier_fingerprints() == backbone.earlier_fingerprints()


# ---- files and data sets of before --------------------------------------------------------------------------------------
@pytest.fixture
def picture(tmp_path, fresh):
    Image.fromarray(random_images(fresh, 1, 16, 16)[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_files_of_before_are_decoded(pixels, picture, tmp_path, capsys):
    """With their specification inside, and without it under the options they were made with."""
    how, png = ["--backbone", str(pixels), "-o", str(tmp_path)], tmp_path / "a.decoded.png"
    with of_before():
        assert main(["encode", picture, *how, *TINY]) == 0
        assert main(["decode", str(tmp_path / "a.nbk"), *how]) == 0
    old = png.read_bytes()
    assert main(["decode", str(tmp_path / "a.nbk"), *how, "--force"]) == 0
    assert png.read_bytes() == old
    assert main(["decode", str(tmp_path / "a.nbk"), *how, *TINY, "--force"]) == 0
    assert png.read_bytes() == old
    edit(shutil.copytree(pixels, tmp_path / "x/tiny") / "scheduler/scheduler_config.json", beta_end=0.03)
    capsys.readouterr()
    assert main(["decode", str(tmp_path / "a.nbk"), "--backbone", str(tmp_path / "x/tiny"), "-o", str(tmp_path / "y")]) == 5
    assert "the codec needs backbone 'tiny'" in capsys.readouterr().err
    with of_before():
        assert main(["encode", picture, *how, *TINY, "--no-embed-spec", "--force"]) == 0
    assert main(["decode", str(tmp_path / "a.nbk"), *how, *TINY, "--force"]) == 0
    assert png.read_bytes() == old
    assert main(["decode", str(tmp_path / "a.nbk"), *how, *TINY, "--seed", "3", "--force"]) == 5


def test_a_codec_of_before_keeps_its_specification(pixels, fresh):
    backbone = backbones.load(pixels)
    now = noisebook.load("photo", backbone=backbone, **FEW)
    old = replace(now.spec, fingerprint=backbone.earlier_fingerprints()[0])
    codec = noisebook.load(old, backbone=backbone)
    assert codec.spec == old
    assert [c.spec for c in codec.aliases()] == [old, now.spec]
    assert [c.spec for c in now.aliases()] == [now.spec, old]
    now.default_size = (24, 40)
    again = now.as_recorded(old)
    assert (again.spec, again.default_size) == (old, (24, 40))
    assert now.as_recorded(replace(old, seed=7)) is now
    images = random_images(fresh, 2, 16, 16)
    assert torch.equal(codec.encode(images), now.encode(images))
    with pytest.raises(CodecMismatchError, match="the codec needs backbone"):
        noisebook.load(replace(old, fingerprint="0" * 64), backbone=backbone)


def test_data_sets_of_before_go_on(pixels, tmp_path, fresh):
    pytest.importorskip("pyarrow")
    from noisebook.datasets import TokenDataset, tokenize
    from noisebook.datasets.detokenize import detokenize
    from noisebook.datasets.plan import Plan
    from noisebook.datasets.recipe import CodecRecipe
    from noisebook.datasets.shard import Tokenizer
    from noisebook.datasets.store import Store
    from noisebook.report.collect import ReportSource

    (tmp_path / "in").mkdir()
    for i, image in enumerate(random_images(fresh, 6, 16, 16)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"in/{i}.png")
    recipe = CodecRecipe("photo", str(pixels), changes=FEW)
    how = {"codec": recipe, "shard_size": 2, "workers": 0}
    with of_before():
        tokenize(tmp_path / "in", tmp_path / "old", **how)
    made = {path.name: path.read_bytes() for path in (tmp_path / "old/shards").iterdir()}
    lost = sorted((tmp_path / "old/shards").iterdir())[1]
    lost.unlink()
    sorted((tmp_path / "old/ledger").iterdir())[1].unlink()
    assert tokenize(tmp_path / "in", tmp_path / "old", resume=True, **how)["shards"] == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "old/shards").iterdir()} == made
    data = TokenDataset(str(tmp_path / "old"))
    codec = recipe.load((16, 16))
    assert codec.spec.fingerprint != data.spec.fingerprint
    store = Store(tmp_path / "old")
    plan = Plan.load(store)
    assert plan is not None
    assert Tokenizer(plan, codec, store, 0).codec.spec == data.spec  # of a child, which makes its codec itself
    other = noisebook.load("photo", backbone=codec.backbone, **{**FEW, "seed": 3})
    with pytest.raises(SpecError, match="not the one of the plan"):
        Tokenizer(plan, other, store, 0)
    assert ReportSource(str(tmp_path / "old")).run(codec, ["0.png"]).counts["n_ok"] == 6
    assert detokenize(data, codec, tmp_path / "pictures")["written"] == 6
    tokenize(tmp_path / "in", tmp_path / "new", **how)
    assert TokenDataset(str(tmp_path / "new")).spec == codec.spec


def test_curves_of_before(pixels, tmp_path, picture, capsys):
    how = ["calibrate", str(pixels), picture, "-o", str(tmp_path / "c.json")]
    with of_before():
        assert main(how) == 0
    old = (tmp_path / "c.json").read_bytes()
    capsys.readouterr()
    assert main(how) == 0, "its own curve is found again"
    assert (tmp_path / "c.json").read_bytes() == old
    curve = Curve.from_json(old)
    backbone = backbones.load(pixels)
    assert curve.fingerprint != backbone.fingerprint
    codec = Aim(Target(bpp=1.0, max_nfe=4), backbone, curve).codec(16, 16, 8)
    assert codec.spec.fingerprint == curve.fingerprint
    with pytest.raises(BackboneError, match="run `noisebook calibrate`"):
        Aim(Target(bpp=1.0), backbone, replace(curve, fingerprint="0" * 64))


# ---- straight into place ------------------------------------------------------------------------------------------------
def tensors_of(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("name", ["sd", "dit", "sd3.5", "flux", "consistency", "ve"])  # each class of network
@torch.no_grad()
def test_nothing_is_drawn_and_every_tensor_is_what_it_was(saved, name, monkeypatch):
    """Weights are those of the file, and what a constructor computes is the same as in the library's own module."""
    path, pipe = saved(name)
    state = torch.get_rng_state()
    backbone = from_folder(path, **OPTIONS.get(name, {}))
    if name in ("consistency", "ve", "dit"):  # others run a text encoder, which transformers makes
        assert torch.equal(torch.get_rng_state(), state), "random weights were made, to be thrown away"
    network = getattr(backbone, "inner", backbone)
    network = getattr(network, "net", None)
    theirs = {"net": pipe.components.get("unet") or pipe.transformer}
    ours = {"net": network.model}
    if hasattr(backbone, "autoencoder"):
        theirs["vae"], ours["vae"] = pipe.vae, backbone.autoencoder.vae
    for part, module in theirs.items():
        want, got = tensors_of(module), tensors_of(ours[part])
        assert want.keys() == got.keys()
        for key, tensor in want.items():
            assert got[key].dtype == torch.float32
            assert torch.equal(got[key], tensor.float()), key
        assert not any(tensor.is_meta for tensor in computed(ours[part]))


def halved(path: Path, to: Path, dtype=torch.float16) -> Path:
    """A copy of a folder with its network's and autoencoder's weights in half precision."""
    shutil.copytree(path, to)
    for part in ("unet", "transformer", "vae"):
        for file in (to / part).glob("*.safetensors"):
            save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    return to


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_bfloat16_is_what_a_cast_of_float32_makes(saved, tmp_path, monkeypatch, stored):
    path = halved(saved("dit")[0], tmp_path / "half", stored)
    slow = backbones.load(path, label=1).accelerate("bfloat16", channels_last=True)
    seen, load = [], torch.nn.Module.load_state_dict

    def spied(self, state, *args, **kwargs):
        seen.append((type(self).__name__, {tensor.dtype for tensor in state.values()}))
        return load(self, state, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", spied)
    how = {"dtype": "bfloat16", "channels_last": True, "compile": False}
    fast = backbones.load(path, accelerated=how, label=1)
    assert dict(seen)["DiTTransformer2DModel"] == {torch.bfloat16}, "no float32 copy on the way"
    want, got = tensors_of(slow), tensors_of(fast)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name
    y = noise(1, 4, 8, 8)
    assert torch.equal(fast.denoise(y, 1.0), slow.denoise(y, 1.0))
    assert fast.fingerprint == slow.fingerprint == backbones.load(path, label=1).fingerprint


def test_the_codec_asks_for_its_dtype(pixels, monkeypatch):
    seen, load = [], torch.nn.Module.load_state_dict
    monkeypatch.setattr(
        torch.nn.Module,
        "load_state_dict",
        lambda self, state, **how: seen.extend(t.dtype for t in state.values()) or load(self, state, **how),
    )
    codec = noisebook.load("photo", backbone=str(pixels), dtype="bfloat16", **FEW)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in codec.backbone.parameters()} == {torch.bfloat16}
    assert noisebook.load("photo", backbone=str(pixels), **FEW).spec == codec.spec
    for dtype in ("float16", torch.float64):
        with pytest.raises(BackboneError, match="float32, bfloat16, bfloat16-network, not"):
            noisebook.load("photo", backbone=str(pixels), dtype=dtype, **FEW)


def test_weights_go_to_the_device_as_they_are_stored(saved, tmp_path, monkeypatch):
    """One by one, and are cast there: never a whole network on the host."""
    path, moves, to = halved(saved("dit")[0], tmp_path / "half"), [], torch.Tensor.to

    def spied(self, *args, **kwargs):
        out = to(self, *args, **kwargs)
        if out.is_meta and not self.is_meta:
            moves.append(self.dtype)
        return out

    monkeypatch.setattr(torch.Tensor, "to", spied)
    backbone = from_folder(path, label=1, device="meta")
    assert set(moves) == {torch.float16}
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_float32_weights_on_a_cpu_are_the_file(pixels, monkeypatch):
    """No copy of them is made."""
    stored, tensors = {}, parts.Part.tensors
    monkeypatch.setattr(parts.Part, "tensors", lambda self: stored.setdefault("all", tensors(self)))
    backbone = from_folder(pixels)
    places = {tensor.data_ptr() for tensor in stored["all"].values()}
    assert {p.data_ptr() for p in backbone.parameters()} == places


class Odd(torch.nn.Module):
    """A network whose constructor computes tensors that no file holds."""

    def __init__(self, kind: str):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        table = torch.arange(3.0).outer(torch.ones(2)).cos()
        if kind == "buffer":
            self.register_buffer("table", table, persistent=False)
        elif kind == "attribute":
            self.table = table
        elif kind == "list":
            self.tables = [table]
        elif kind == "filled":
            self.table = torch.empty(3, 2).fill_(4.0)


@pytest.mark.parametrize("kind", ["none", "buffer", "attribute", "list", "filled"])
def test_what_a_constructor_computes_is_there(kind):
    stored = {name: torch.randn_like(tensor) for name, tensor in Odd(kind).layer.state_dict(prefix="layer.").items()}
    network = skeleton(lambda: Odd(kind), stored)
    for got, want in zip(computed(network), computed(Odd(kind)), strict=True):
        assert torch.equal(got, want)
    network.load_state_dict(stored, assign=True)
    assert network.layer.weight.data_ptr() == stored["layer.weight"].data_ptr()
    with pytest.raises(ValueError, match="the config makes"):
        skeleton(lambda: torch.nn.Linear(2000, 2000), stored)
