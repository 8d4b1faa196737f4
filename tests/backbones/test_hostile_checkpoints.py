"""Checkpoints and folders from strangers: one line for what does not fit, no memory that their tensors do not justify, and
nothing opened, contacted or imported because they say so."""

import json
import time
import tracemalloc

import pytest
import torch
from audit_kit import touching, watched
from safetensors.torch import save_file

from noisebook import backbones
from noisebook.backbones import registry
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.diffusers.files import read_json
from noisebook.errors import BackboneError

TINY = {"x": torch.zeros(1)}


def refused(path, match: str = ".", **options) -> str:
    with watched() as events, pytest.raises(BackboneError, match=match) as caught:
        backbones.load(path, **options)
    assert not touching(events, "evil")
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 1000
    return said


@pytest.mark.parametrize(
    "header",
    [
        [],
        "text",
        7,
        None,
        {},
        {"kind": "convnet"},
        {"kind": 7, "config": {}},
        {"kind": ["convnet"], "config": {}},
        {"kind": "convnet", "config": []},
        {"kind": "convnet", "config": "widths"},
        {"kind": "\x1b[2J" * 100, "config": {}},
        "[" * 100_000,
        '{"kind": "convnet", "kind": "unet", "config": {}}',
        '{"kind": "convnet", "config": {"blocks": NaN}}',
        '{"kind": "convnet", "config": {"blocks": ' + "9" * 5000 + "}}",
    ],
)
def test_metadata_of_any_kind_is_one_line(header, tmp_path):
    text = header if isinstance(header, str) and header[:1] in "[{" else json.dumps(header)
    save_file(TINY, tmp_path / "a.safetensors", {"noisebook": text})
    refused(tmp_path / "a.safetensors", "not a noisebook checkpoint|unknown kind")


def test_metadata_is_needed(tmp_path):
    for metadata in (None, {"other": "x"}):
        save_file(TINY, tmp_path / "a.safetensors", metadata)
        refused(tmp_path / "a.safetensors", "not a noisebook checkpoint")


VALUES = [None, True, -1, 0, 1 << 40, 1 << 70, 0.5, 1e308, "", "evil", [], [1 << 40], [[1]], {}, {"a": 1}, [1] * 5000]


@pytest.mark.parametrize("name", ["photo", "gaussian-prior", "cifar10-cod"])
def test_configs_with_other_values_are_refused_or_load_and_cost_little(name, tmp_path):
    """Each field in turn: an error of ours in one line, or a backbone; never another error, never much memory or time."""
    kind, config, tensors = read_checkpoint(registry.WEIGHTS / f"{name}.safetensors")
    verdicts = {True: 0, False: 0}
    begin = time.perf_counter()
    tracemalloc.start()
    for field in [*list(config)[:4], "other"]:
        for value in VALUES[:: 4 if name == "cifar10-cod" else 2]:
            write_checkpoint(tmp_path / "a.safetensors", kind, {**config, field: value}, tensors)
            try:
                backbones.load(tmp_path / "a.safetensors")
                verdicts[True] += 1
            except BackboneError:
                verdicts[False] += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert verdicts[False] > 5
    assert peak < 200 << 20
    assert time.perf_counter() - begin < 60


@pytest.mark.parametrize(
    "config",
    [
        {"widths": [1 << 16, 1 << 16]},
        {"widths": [1 << 30]},
        {"widths": [80, 128, 128], "blocks": 1 << 15},
        {"widths": [16] * 4000},
        {"patch": 1 << 15},
        {"embedding": 1 << 16},
    ],
)
def test_a_network_is_not_made_larger_than_its_tensors(config, tmp_path):
    kind, good, tensors = read_checkpoint(registry.WEIGHTS / "photo.safetensors")
    write_checkpoint(tmp_path / "a.safetensors", kind, {**good, **config}, tensors)
    begin = time.perf_counter()
    refused(tmp_path / "a.safetensors")
    assert time.perf_counter() - begin < 5


def test_tensors_of_other_shapes_and_types_are_refused_or_load(tmp_path):
    for name in ("photo", "gaussian-prior", "cifar10-cod"):
        kind, config, tensors = read_checkpoint(registry.WEIGHTS / f"{name}.safetensors")
        first = next(iter(tensors))
        for other in (torch.zeros(0), torch.zeros(2, 3), torch.zeros(1, dtype=torch.bool), tensors[first].to(torch.int64)):
            write_checkpoint(tmp_path / "a.safetensors", kind, config, {**tensors, first: other})
            if other.shape != tensors[first].shape:
                refused(tmp_path / "a.safetensors")
        write_checkpoint(tmp_path / "a.safetensors", kind, config, {k: v for k, v in tensors.items() if k != first})
        refused(tmp_path / "a.safetensors")
        write_checkpoint(tmp_path / "a.safetensors", kind, config, {**tensors, "evil": torch.zeros(1)})
        refused(tmp_path / "a.safetensors")


def test_names_that_no_file_can_have_are_refused_in_words():
    for name in ("a\0b", "x" * 300, "é" * 200, "a/" * 3 + "y" * 400, "\x1b[2J"):
        refused(name, "no backbone")


def test_a_device_that_torch_cannot_use_is_one_line():
    for device in ("cuda:99", "nothing", None, 1.5):
        with pytest.raises((BackboneError, ValueError), match="cannot be used"):
            backbones.load("gaussian-prior", device)


@pytest.mark.parametrize("text", [b"[]", b"7", b"[" * 100_000, b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b""])
def test_json_of_a_folder_is_an_object(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(BackboneError):
        read_json(tmp_path / "config.json")


def test_a_folder_names_nothing_that_is_opened_or_imported(tmp_path):
    pytest.importorskip("diffusers")
    folder = tmp_path / "model"
    (folder / "scheduler").mkdir(parents=True)
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('ran')")
    more = {"_name_or_path": str(evil), "auto_map": {"AutoModel": f"{evil}--evil.Model"}, "trust_remote_code": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler", **more}))
    save_file(TINY, folder / "diffusion_pytorch_model.safetensors")
    for config in (
        {"_class_name": "evil.Model"},
        {"_class_name": ["diffusers", "DiffusionPipeline"]},
        {"_class_name": "DiffusionPipeline", "sample_size": 8},
        {"_class_name": "UNet2DModel", "sample_size": 8, "down_block_types": [str(evil)], "act_fn": "evil"},
        {"_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [1 << 16, 1 << 16]},
        {"_class_name": "UNet2DModel", "sample_size": 8, "layers_per_block": 1 << 15},
        {"_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [1 << 40]},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **more}))
        begin = time.perf_counter()
        refused(folder)
        assert time.perf_counter() - begin < 10
