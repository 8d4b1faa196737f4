"""What the loop does beside its objectives: crops of many sizes, on a device, states in parts, errors side by side."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from common import random_images
from noisebook import backbones
from noisebook.backbones.nets.convnet import ConvDenoiser
from noisebook.cli import main as cli
from noisebook.errors import TrainingError
from noisebook.training import loop, objectives, speed, state
from noisebook.training.data import Crops, CropsOnDevice, batch
from noisebook.training.loop import TrainingSettings, train, validate
from noisebook.training.speed import flop_per_pixel, share
from noisebook.training.state import read_state, write_state


def pictures(fresh, count: int = 40, height: int = 18, width: int = 20) -> list[np.ndarray]:
    return list(random_images(fresh, count, height, width).permute(0, 2, 3, 1).numpy().copy())


def small() -> ConvDenoiser:
    torch.manual_seed(0)
    prior = backbones.load("gaussian-prior")
    return ConvDenoiser(prior, widths=(8, 8), blocks=1, embedding=8, patch=2)  # type: ignore[arg-type]


def trained(out, images, minutes=0.005, write=lambda net, path: path.touch(), **changes):
    numbers = {"sizes": (16,), "pixels": 1024, "held_out": 8, **changes}
    return train(small, objectives.edm(), images, out, write, TrainingSettings(minutes=minutes, **numbers))


# ---- crops --------------------------------------------------------------------------------------------------------------
def test_crops_on_a_device_are_crops_of_the_images_and_cover_them(fresh):
    """Images of two sizes: each crop is found in one of them, mirrored or not, and all places and both mirrorings occur."""
    images = [
        np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3),
        255 - np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3),
    ]
    expected = set()
    for image in images:
        for y in range(image.shape[0] - 3):
            for x in range(image.shape[1] - 3):
                crop = image[y : y + 4, x : x + 4].transpose(2, 0, 1)
                expected |= {tuple(crop.flatten().tolist()), tuple(crop[:, :, ::-1].flatten().tolist())}
    source = CropsOnDevice(images, "cpu")
    assert source.bytes.dtype == torch.uint8
    drawn = source.sample(900, 4, fresh)
    assert {tuple((x.flatten() * 127.5 + 127.5).round().int().tolist()) for x in drawn} == expected
    a, b = (source.sample(5, 4, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_batch_is_what_it_was_where_nothing_else_is_asked_for(fresh):
    """Runs of an earlier release go on with the crops that they would have seen."""
    source = Crops(pictures(fresh))
    one = batch(source, 1024, (16,), False, np.random.default_rng(5))
    assert torch.equal(one, source.sample(4, 16, np.random.default_rng(5)))


def test_sides_are_drawn_and_images_are_shrunk(fresh):
    """Rows that alternate between black and white are grey at half their size, and none of the crops leaves [-1, 1]."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    rng, seen, greys = np.random.default_rng(1), set(), []
    for source in (Crops([stripes]), CropsOnDevice([stripes], "cpu")):
        for _ in range(40):
            x = batch(source, 4096, (16, 32, 48), True, rng)
            assert x.shape[0] == max(1, 4096 // x.shape[2] ** 2)
            assert x.abs().max() <= 1
            seen.add(x.shape[2])
            greys.append(x.std().item())
    assert seen == {16, 32, 48}
    whole = sum(grey > 0.99 for grey in greys)
    assert 20 < whole < 60  # half of 80
    assert min(greys) < 0.4
    assert batch(Crops([stripes[:20, :20]]), 256, (16,), True, rng).shape == (1, 3, 16, 16)  # as far as there is room


def test_random_sizes_are_those_that_the_network_takes():
    settings = TrainingSettings(sizes=(64, 128), random_sizes=True)
    assert loop._sides(settings, 32, 0.9) == (64, 96, 128)
    assert loop._sides(TrainingSettings(sizes=(64, 128)), 32, 0.4) == (64,)
    assert loop._sides(TrainingSettings(sizes=(64, 128)), 32, 0.6) == (128,)
    assert json.loads(loop._identity(settings))["random_sizes"]
    assert "shrink" not in loop._identity(TrainingSettings())  # states of earlier releases say nothing of it


def test_the_options_reach_the_loop(tmp_path, fresh, monkeypatch):
    np.savez(tmp_path / "data.npz", images=np.stack(pictures(fresh, 24, 40, 40)))
    seen, compiled = set(), []
    inner = loop.batch

    def watched(source, pixels, sides, shrink, rng):
        seen.add((sides, shrink))
        return inner(source, pixels, sides, shrink, rng)

    monkeypatch.setattr(loop, "batch", watched)
    monkeypatch.setattr(loop, "compiled", lambda function: compiled.append(function) or function)
    options = ["--sizes", "16", "24", "--random-sizes", "--shrink", "--compile", "--widths", "8", "8", "--blocks", "1"]
    command = ["train", "edm", tmp_path / "data.npz", "-o", tmp_path / "run", *options, "--patch", "2"]
    assert cli.main([*map(str, command), "--minutes", "0.005", "--held-out", "8", "--pixels", "1024"]) == 0
    assert seen == {((16, 20, 24), True)}
    assert len(compiled) == 1


# ---- errors -------------------------------------------------------------------------------------------------------------
def test_errors_of_training_and_held_out_crops_stand_side_by_side(tmp_path, fresh):
    images = pictures(fresh)
    kept = {}
    log = trained(tmp_path, images, write=lambda net, path: kept.update(net=net) or path.touch())
    for prefix, some in (("", images[-8:]), ("train_", images[:-8])):
        x = Crops(some).sample(32, 16, np.random.default_rng(1))
        for key, value in validate(kept["net"], x).items():
            assert log[-1][f"{prefix}{key}"] == pytest.approx(value)


# ---- states -------------------------------------------------------------------------------------------------------------
def test_a_large_state_is_in_parts_and_resumes(tmp_path, fresh, monkeypatch):
    """Weights exactly, the moving average and the optimizer to bfloat16's digits; parts of the save before are gone."""
    monkeypatch.setattr(state, "LARGEST", 8192)
    images = pictures(fresh)
    kept = {}
    first = trained(tmp_path, images, write=lambda net, path: kept.update(net.state_dict()) or path.touch())
    parts = sorted(tmp_path.glob("state-*.pt"))
    assert len(parts) > 2
    for path in parts:
        tensors = torch.load(path, weights_only=True)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors) <= 8192
    found = read_state(tmp_path / "state.pt", "cpu")
    assert found["iteration"] == first[-1]["iteration"]
    for name, value in found["average"].items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=1e-4)
    assert any(value.dtype == torch.bfloat16 for value in found["optimizer"][0]["state"][0].values())
    again = trained(tmp_path, images, first[-1]["minutes"] + 0.005)
    assert again[-1]["iteration"] > first[-1]["iteration"]
    assert not set(parts) & set(tmp_path.glob("state-*.pt"))


def test_parts_hold_what_the_state_had(tmp_path, fresh, monkeypatch):
    net = small()
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.step()
    average = {name: value + 1e-3 * torch.randn_like(value) for name, value in net.state_dict().items()}
    whole = {
        **{"model": net.state_dict(), "average": average, "optimizer": [optimizer.state_dict()], "iteration": 7},
        **{"spent": 1.5, "log": [{"loss": 0.5}], "settings": "{}"},
    }
    write_state(tmp_path, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]  # a small one is exact, and in one file
    assert torch.equal(read_state(tmp_path / "state.pt", "cpu")["average"]["enter.weight"], average["enter.weight"])
    monkeypatch.setattr(state, "LARGEST", 4096)
    write_state(tmp_path, whole | {"iteration": 8})
    found = read_state(tmp_path / "state.pt", "cpu")
    assert (found["spent"], found["log"], found["settings"], found["iteration"]) == (1.5, [{"loss": 0.5}], "{}", 8)
    for name, value in net.state_dict().items():
        assert torch.equal(found["model"][name], value)
        torch.testing.assert_close(found["average"][name], average[name], rtol=0, atol=1e-5)
    other = torch.optim.AdamW(small().parameters())
    other.load_state_dict(found["optimizer"][0])
    for a, b in zip(other.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert a["exp_avg"].dtype == torch.float32
        torch.testing.assert_close(a["exp_avg"], b["exp_avg"], rtol=2**-8, atol=0)
        assert a["step"] == b["step"]


def test_the_state_of_five_million_weights_fits_four_files_of_16_mib(tmp_path):
    """What `bench/gpu.sh train` brings back: 5.15 million weights, their average and two moments."""
    net = nn.ModuleList(nn.Conv2d(160, 160, 3) for _ in range(22)).to(**{"memory_format": torch.channels_last})
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(5.07e6, rel=0.01)
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": p.data, "exp_avg_sq": p.data} for i, p in enumerate(net.parameters())
    }
    whole = {"model": net.state_dict(), "average": net.state_dict(), "optimizer": [{"state": moments}], "iteration": 1}
    write_state(tmp_path, whole)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) < 16 << 20
    assert len(sizes) <= 5
    assert sum(sizes) < 52 << 20  # with model.safetensors of 10 MiB below 64 in all


def test_a_save_that_fails_between_its_files_leaves_the_one_before(tmp_path, fresh, monkeypatch):
    monkeypatch.setattr(state, "LARGEST", 8192)
    images = pictures(fresh)
    first = trained(tmp_path, images)[-1]
    inner, calls = torch.save, []

    def full(value, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        inner(value, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        trained(tmp_path, images, first["minutes"] + 0.005)
    monkeypatch.setattr(torch, "save", inner)
    assert read_state(tmp_path / "state.pt", "cpu")["iteration"] == first["iteration"]
    again = trained(tmp_path, images, first["minutes"] + 0.005)
    assert again[-1]["iteration"] > first["iteration"]
    names = {path.name.rsplit("-", 1)[0] for path in tmp_path.glob("state-*.pt")}
    assert names == {f"state-{again[-1]['iteration']}"}  # the parts of the save that failed are gone, too


def test_a_missing_part_is_said(tmp_path, fresh, monkeypatch):
    monkeypatch.setattr(state, "LARGEST", 8192)
    images = pictures(fresh)
    trained(tmp_path, images)
    next(tmp_path.glob("state-*-1.pt")).unlink()
    with pytest.raises(TrainingError, match="no state to resume"):
        trained(tmp_path, images, 1)


# ---- speed --------------------------------------------------------------------------------------------------------------
def test_the_share_of_a_chip_is_arithmetic():
    found = share(1e6, 2e5, "NVIDIA H200")
    assert found["tflops"] == pytest.approx(0.6)
    assert found["share_of_peak"] == pytest.approx(0.6 / 989)
    assert share(1e6, 2e5, "NVIDIA H100 PCIe")["share_of_peak"] == pytest.approx(0.6 / 756)
    assert share(1e6, 2e5, "Voodoo 2")["share_of_peak"] is None


def test_the_work_of_a_call_is_that_of_its_convolutions():
    """The first convolution and the last, both blocks of both levels, and the steps between the levels."""
    net, side = small(), 32
    low, lower = (side // 2) ** 2, (side // 4) ** 2
    work = 9 * low * (24 * 8 + 8 * 12) + 9 * 8 * 8 * 4 * (low + lower) + 2 * 4 * 8 * 8 * lower
    linear = 32 * 8 + 8 * 8 + 4 * 8 * 16  # the level's embedding, once an image
    assert flop_per_pixel(net, 3, side, "cpu") == pytest.approx(2 * (work + linear) / side**2)
    assert speed.PEAKS
