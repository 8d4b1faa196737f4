"""Folders and repositories of diffusers' layout: shards, variants, fingerprints, what is refused, and the hub's cache."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import LENGTH, edit, noise, saver

from common import random_images
from noisebook.backbones.diffusers.folder import from_folder, from_hub, hub_patterns
from noisebook.cli.main import main
from noisebook.errors import BackboneError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> (folder, the pipeline that was saved there)."""
    return saver(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def copied(saved, tmp_path):
    """name -> a folder of the pipeline that the test may damage."""
    return lambda name: shutil.copytree(saved(name)[0], tmp_path / "copy")


def split(folder, stem, parts=2, variant=""):
    """Replaces the one weight file of a folder by shards and their index."""
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    weight_map = {}
    for i in range(parts):
        names = sorted(tensors)[i::parts]
        file = f"{stem}-{i + 1:05}-of-{parts:05}{variant}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = folder / f"{stem}.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def halve(folder, stem, variant="fp16"):
    """Replaces the weight file of a folder by one of a variant, in half precision."""
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    save_file({name: t.half() for name, t in tensors.items()}, folder / f"{stem}.{variant}.safetensors")


PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@torch.no_grad()
def test_shards_and_variants(saved, copied):
    whole, y = from_folder(saved("sd")[0]), noise(1, 4, 8, 8)
    path = copied("sd")
    for part, stem in PARTS.items():
        split(path / part, stem)
    sharded = from_folder(path)
    assert sharded.fingerprint != whole.fingerprint  # other files
    assert sharded.earlier_fingerprints() == whole.earlier_fingerprints()  # of tensors: both read files of then
    assert torch.equal(sharded.denoise(y, 1.0), whole.denoise(y, 1.0))
    shutil.rmtree(path)
    path = copied("sd")
    for part, stem in PARTS.items():
        halve(path / part, stem)
    half = from_folder(path)
    assert half.fingerprint == from_folder(path, variant="fp16").fingerprint != whole.fingerprint
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert not torch.equal(half.denoise(y, 1.0), whole.denoise(y, 1.0))
    torch.testing.assert_close(half.denoise(y, 1.0), whole.denoise(y, 1.0), rtol=0.05, atol=0.05)
    with pytest.raises(BackboneError, match=r"no diffusion_pytorch_model\.non_ema\.safetensors: there is .*fp16"):
        from_folder(path, variant="non_ema")


@torch.no_grad()
def test_a_variant_is_taken_of_the_parts_that_have_it(saved, copied):
    """As in diffusers: the plain weights of the others; the plain ones of all where no variant is asked for."""
    path, y = copied("sd"), noise(1, 4, 8, 8)
    halve(path / "unet", PARTS["unet"])
    mixed = from_folder(path, variant="fp16")
    pipe = type(saved("sd")[1]).from_pretrained(path, variant="fp16", safety_checker=None)
    ours = dict(mixed.inner.net.model.named_parameters())
    assert all(torch.equal(p.float(), ours[name]) for name, p in pipe.unet.named_parameters())
    assert mixed.fingerprint == from_folder(path).fingerprint != from_folder(saved("sd")[0]).fingerprint
    shutil.copy(saved("sd")[0] / "unet/diffusion_pytorch_model.safetensors", path / "unet")
    assert from_folder(path, variant="fp16").fingerprint == mixed.fingerprint
    assert torch.equal(from_folder(path).denoise(y, 1.0), from_folder(saved("sd")[0]).denoise(y, 1.0))
    for variant in ("../fp16", "", "a/b"):
        with pytest.raises(BackboneError, match="variant is what stands between the dots"):
            from_folder(path, variant=variant)


def scaled(path):
    """As checkpoints of ComfyUI have them: float8 weights and a scale beside each."""
    file = path / "text_encoder/model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name.replace(".weight", ".scale_weight")] = torch.full((), 0.5)
    save_file(tensors, file)


def stranger(path):
    file = path / "text_encoder/model.safetensors"
    save_file({**load_file(file), "adapter.bias": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("damage", "message"), [(scaled, "quantised weights .*scale_weight"), (stranger, "does not take, adapter.bias")]
)
def test_tensors_that_a_text_encoder_does_not_take(copied, damage, message):
    path = copied("sd")
    damage(path)
    with pytest.raises(BackboneError, match=message) as info:
        from_folder(path)
    assert "\n" not in str(info.value)


def test_a_wrong_prompt_is_named_as_the_cause(copied, tmp_path, capsys, fresh):
    path = str(copied("sd"))
    halve(tmp_path / "copy/unet", PARTS["unet"])
    Image.fromarray(random_images(fresh, 1, 16, 16)[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    how = ("--backbone", path, "--variant", "fp16")
    assert main(["encode", str(tmp_path / "a.png"), "-o", str(tmp_path), *how, "--prompt", "a cat", "--steps", "2"]) == 0
    for prompt in (("--prompt", "a dog"), ()):
        assert main(["decode", str(tmp_path / "a.nbk"), "-o", str(tmp_path / "out"), *how, *prompt]) == 5
        assert "most likely it was loaded under another prompt" in capsys.readouterr().err
    assert main(["decode", str(tmp_path / "a.nbk"), "-o", str(tmp_path / "out"), *how, "--prompt", "a cat"]) == 0


def test_every_part_is_in_the_fingerprint(saved, copied):
    path, found = copied("sd"), {from_folder(saved("sd")[0]).fingerprint}
    for part, stem in PARTS.items():
        file = path / part / f"{stem}.safetensors"
        tensors = load_file(file)
        next(t for t in tensors.values() if t.is_floating_point()).view(torch.int32).view(-1)[0] ^= 1
        save_file(tensors, file)
        found.add(from_folder(path).fingerprint)
    edit(path / "scheduler/scheduler_config.json", beta_end=0.013)
    assert len(found | {from_folder(path).fingerprint}) == 5


def test_conditions_are_in_the_fingerprint(saved):
    path = saved("sd")[0]
    asked = [
        {},
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "a", "guidance": 2},
        {"prompt": "a", "guidance": 3},
        {"prompt": "a", "guidance": 2, "negative_prompt": "b"},
    ]
    assert len({from_folder(path, **options).fingerprint for options in asked}) == len(asked)
    assert from_folder(path, prompt="").fingerprint == from_folder(path).fingerprint
    path = saved("flux")[0]
    assert from_folder(path, guidance=3.5).fingerprint != from_folder(path).fingerprint


def names_of_before(path):
    """Before transformers 5: text encoders with a prefix and a buffer more, tokenizers as a vocabulary and merges."""
    tokenizer = path / "tokenizer/tokenizer.json"
    (path / "tokenizer/vocab.json").write_text(json.dumps(json.loads(tokenizer.read_text())["model"]["vocab"]))
    (path / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    tokenizer.unlink()
    file = path / "text_encoder/model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file(tensors, file)


@torch.no_grad()
def test_text_encoders_of_before(saved, copied):
    path, y = copied("sd"), noise(1, 4, 8, 8)
    names_of_before(path)
    old, new = from_folder(path, prompt="a cat"), from_folder(saved("sd")[0], prompt="a cat")
    assert torch.equal(old.denoise(y, 1.0), new.denoise(y, 1.0))
    assert not torch.equal(new.denoise(y, 1.0), from_folder(path, prompt="a dog").denoise(y, 1.0))


def to_pickle(path, part):
    (path / part / f"{PARTS[part]}.safetensors").rename(path / part / "pytorch_model.bin")


def without(path, part, name):
    file = path / part / f"{PARTS[part]}.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)


def lose_a_shard(path):
    split(path / "unet", PARTS["unet"])
    (path / "unet" / f"{PARTS['unet']}-00002-of-00002.safetensors").unlink()


def escape(path):
    index = split(path / "unet", PARTS["unet"])
    edit(index, weight_map={"conv_in.bias": "../vae/diffusion_pytorch_model.safetensors"})


DAMAGES = {
    r"vae: no config\.json": lambda path: shutil.rmtree(path / "vae"),
    r"text_encoder: no model\.safetensors: pytorch_model\.bin is a pickle": lambda path: to_pickle(path, "text_encoder"),
    r"vae: no diffusion_pytorch_model\.safetensors: pytorch_model\.bin is a pickle": lambda path: to_pickle(path, "vae"),
    r"tokenizer: no tokenizer\.json, nor vocab\.json with merges\.txt": lambda path: (
        path / "tokenizer/tokenizer.json"
    ).rename(path / "tokenizer/vocab.json"),
    r"tokenizer: cannot be read": lambda path: (path / "tokenizer/tokenizer.json").write_text("{"),
    r"no diffusion_pytorch_model-00002-of-00002\.safetensors": lose_a_shard,
    r"no safetensors files beside it": escape,
    r"final_layer_norm": lambda path: without(path, "text_encoder", "final_layer_norm.weight"),
    r"holds a UNet3DConditionModel; read are UNet2DModel": lambda path: edit(
        path / "unet/config.json", _class_name="UNet3DConditionModel"
    ),
    r"holds a VQModel; read are AutoencoderKL": lambda path: edit(path / "vae/config.json", _class_name="VQModel"),
    r"text_encoder is a RobertaModel": lambda path: edit(path / "model_index.json", text_encoder=["x", "RobertaModel"]),
    r"text_encoder is a null": lambda path: edit(path / "model_index.json", text_encoder=[None, None]),
    r"without unet or transformer": lambda path: edit(path / "model_index.json", unet=[None, None]),
    r"inpainting": lambda path: edit(path / "unet/config.json", in_channels=9),
    r"width 16; the text encoders give 8": lambda path: edit(path / "unet/config.json", cross_attention_dim=16),
    r"encoder_hid_dim_type 'text_proj' is not read": lambda path: edit(
        path / "unet/config.json", encoder_hid_dim_type="text_proj"
    ),
    r"latents_mean": lambda path: edit(path / "vae/config.json", latents_mean=[0, 0, 0, 0]),
    r"no scheduler/scheduler_config\.json": lambda path: shutil.rmtree(path / "scheduler"),
    r"KarrasVeScheduler has no beta_schedule": lambda path: (path / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "KarrasVeScheduler"}'
    ),
}


@pytest.mark.parametrize("message", list(DAMAGES))
def test_what_is_refused(copied, message):
    path = copied("sd")
    DAMAGES[message](path)
    with pytest.raises(BackboneError, match=message) as info:
        from_folder(path)
    assert "\n" not in str(info.value)


REFUSED = {
    "sd": [
        {"label": 1},
        {"negative_prompt": "bad"},
        {"guidance": 2},
        {"prompt": "a", "negative_prompt": "a", "guidance": 2},
        {"prompt": "a", "guidance": float("nan")},
    ],
    "dit": [{"prompt": ""}, {"label": 6}, {"guidance": 2}, {"label": 5, "guidance": 2}],
    "flux": [{"negative_prompt": "bad", "guidance": 2}],
    "ve": [{"label": 1}, {"guidance": 2}],
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_options_without_effect_are_refused(saved, name):
    for options in REFUSED[name]:
        with pytest.raises(BackboneError, match=r"guidance|label|prompt"):
            from_folder(saved(name)[0], **options)


def test_a_flow_transformer_needs_a_flow_scheduler(copied):
    path = copied("flux")
    (path / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler", "beta_schedule": "linear"}')
    with pytest.raises(BackboneError, match="DDIMScheduler is no flow scheduler"):
        from_folder(path)


def test_without_transformers_the_message_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(BackboneError, match=r"needs transformers: pip install 'noisebook\[text\]'"):
        from_folder(saved("sd")[0])
    assert from_folder(saved("dit")[0]).size == (16, 16)


# ---- the hub -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_an_id_that_is_not_in_the_cache(offline):
    with pytest.raises(BackboneError, match=r"nobody/nothing: no model_index\.json: it is not in the local cache") as info:
        from_hub("nobody/nothing")
    assert "\n" not in str(info.value)
    with pytest.raises(BackboneError, match="a b"):
        from_hub("a b/c")


def test_an_id_in_the_cache(offline, saved):
    repository = offline / "models--somebody--tiny"
    shutil.copytree(saved("sd")[0], repository / "snapshots/0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    backbone = from_hub("somebody/tiny", prompt="a cat")
    assert backbone.name == "somebody/tiny"
    assert backbone.fingerprint == from_folder(saved("sd")[0], prompt="a cat").fingerprint
    next(repository.glob("snapshots/*/vae/*.safetensors")).unlink()
    with pytest.raises(BackboneError, match=r"somebody/tiny: .*vae: no diffusion_pytorch_model\.safetensors"):
        from_hub("somebody/tiny")


def test_of_a_variant_the_other_parts_are_fetched_plain(copied, monkeypatch):
    """And none where no part has it: nothing large is fetched to be refused."""
    hub, path, asked = pytest.importorskip("huggingface_hub"), copied("sd"), []
    halve(path / "unet", PARTS["unet"])
    for part in ("vae", "text_encoder"):  # of the first call only the unet's weights come
        (path / part / f"{PARTS[part]}.safetensors").rename(path / part / "later")

    def download(repo_id, revision, allow_patterns):
        asked.append(allow_patterns)
        for part in ("vae", "text_encoder") if len(asked) == 2 else ():
            (path / part / "later").rename(path / part / f"{PARTS[part]}.safetensors")
        return str(path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert len(from_hub("somebody/tiny", variant="fp16").fingerprint) == 64
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked[0]
    assert {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= set(asked[1])
    assert not any(name.startswith("unet/") for name in asked[1])
    for part, stem in PARTS.items():
        next((path / part).glob(f"{stem}*.safetensors")).unlink()
    asked.clear()
    with pytest.raises(BackboneError, match="fp16"):
        from_hub("somebody/tiny", variant="fp16")
    assert len(asked) == 1


def test_what_is_fetched(saved, tmp_path):
    """Of a repository with everything: one variant, no pickles, nothing of other frameworks."""
    utils = pytest.importorskip("huggingface_hub").utils
    path = tmp_path / "repository"
    shutil.copytree(saved("sd3")[0], path)
    own = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    extra = [
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "sd3_medium.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder/model.onnx",
        "README.md",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "tokenizer/merges.txt",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    ]

    def fetched(variant):
        return set(utils.filter_repo_objects([*own, *extra], allow_patterns=hub_patterns(variant)))

    assert fetched(None) == {*own, "text_encoder_3/model-00001-of-00002.safetensors", "tokenizer/merges.txt"}
    assert {name for name in fetched("fp16") if name.endswith("safetensors")} == {extra[1], extra[8]}
