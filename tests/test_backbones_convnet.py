"""The network behind `photo`, its checkpoint, the registry, and the trainer."""

import json

import numpy as np
import pytest
import torch

from common import random_images
from noisebook import BackboneError, backbones
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.backbones.gaussian import SpectrumPrior
from noisebook.training.edm import crops, train, weighted_loss


def tiny(seed=0) -> ConvDenoiser:
    torch.manual_seed(seed)
    prior = backbones.load("gaussian-prior")
    assert isinstance(prior, SpectrumPrior)
    net = ConvDenoiser(prior, widths=(8, 8), blocks=1, embedding=8)
    for p in net.parameters():  # also the layers that start at zero
        torch.nn.init.normal_(p, std=0.2)
    return net


def test_an_untrained_network_is_its_prior(fresh):
    """Zero-initialised output: training starts from the Wiener filter, not from nothing."""
    prior = backbones.load("gaussian-prior")
    assert isinstance(prior, SpectrumPrior)
    y = torch.from_numpy(fresh.standard_normal((2, 3, 32, 48), "float32"))
    with torch.no_grad():
        assert torch.equal(ConvDenoiser(prior)(y, torch.tensor([0.3, 0.3])), prior(y, 0.3))


def test_checkpoint_round_trip_and_fingerprint(tmp_path, fresh):
    net = tiny()
    tensors = checkpoint_tensors(net)
    write_checkpoint(tmp_path / "a.safetensors", "convnet", net.config, tensors)
    a = backbones.load(tmp_path / "a.safetensors")
    assert (a.name, a.multiple, a.channels, len(a.fingerprint)) == ("a", 8, 3, 64)
    y = torch.from_numpy(fresh.standard_normal((2, 3, 16, 24), "float32"))
    net.load_state_dict({k: v.float() for k, v in tensors.items()})
    assert torch.allclose(a(y, 0.7), net(y, torch.full((2,), 0.7)), atol=1e-5)
    assert not a.training
    name = next(k for k in tensors if k.endswith("conv1.weight"))
    bits = tensors[name].view(torch.int16).clone()
    bits[0, 0, 0, 0] ^= 1
    write_checkpoint(tmp_path / "b.safetensors", "convnet", net.config, {**tensors, name: bits.view(torch.bfloat16)})
    assert backbones.load(tmp_path / "b.safetensors").fingerprint != a.fingerprint


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    net = tiny()
    tensors = checkpoint_tensors(net)
    path = tmp_path / "x.safetensors"
    for kind, config, content in (
        ("gan", net.config, tensors),
        ("convnet", {**net.config, "widths": [8, 16]}, tensors),
        ("convnet", {**net.config, "depth": 3}, tensors),
        ("convnet", {}, tensors),
        ("convnet", net.config, {k: v for k, v in tensors.items() if "enter" not in k}),
        ("convnet", net.config, {k: v for k, v in tensors.items() if "prior" not in k}),
    ):
        write_checkpoint(path, kind, config, content)
        with pytest.raises(BackboneError):
            backbones.load(path)
    write_checkpoint(path, "convnet", net.config, tensors)
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"{}"):
        path.write_bytes(bad)
        with pytest.raises(BackboneError):
            read_checkpoint(path)


@pytest.mark.parametrize("name", backbones.shipped())
def test_shipped_backbones_denoise_real_photographs(name, fresh):
    """Far better than leaving the noise in, at every level of the presets, and at sizes that are no square."""
    from noisebook.images import sample

    model = backbones.load(name)
    h, w = model.padded(100, 150)
    x = torch.from_numpy(sample("cat")[:h, :w].copy()).permute(2, 0, 1)[None].float() * (2 / 255) - 1
    noise = torch.from_numpy(fresh.standard_normal(tuple(x.shape), "float32"))
    for lam in (0.1, 0.3, 1.0, 3.0):
        error = (model(x + lam * noise, lam) - x).square().mean()
        assert error < 0.6 * lam**2 / (1 + 4 * lam**2), lam


def test_the_default_network_beats_the_gaussian_prior_on_photographs():
    from noisebook.images import sample

    net, prior = backbones.load("photo"), backbones.load("gaussian-prior")
    for picture in ("astronaut", "cat", "coffee"):
        x = torch.from_numpy(sample(picture)[:256, :256].copy()).permute(2, 0, 1)[None].float() * (2 / 255) - 1
        for lam in (0.1, 0.2, 0.5):
            y = x + lam * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            assert (net(y, lam) - x).square().mean() < 0.95 * (prior(y, lam) - x).square().mean(), (picture, lam)


def test_training_learns_resumes_and_writes_a_loadable_model(tmp_path, fresh, monkeypatch):
    """A few seconds on smooth random pictures: the loss falls below the prior's, and a second call goes on."""
    monkeypatch.setattr("noisebook.training.edm.HELD_OUT", 8)
    pictures = list(random_images(fresh, 40, 160, 160).permute(0, 2, 3, 1).numpy())
    train(pictures, tmp_path, minutes=0.1, device="cpu", pixels=1 << 13)
    log = json.loads((tmp_path / "log.json").read_text())
    model = backbones.load(tmp_path / "model.safetensors")
    assert isinstance(model, backbones.Backbone)
    assert log[-1]["iteration"] > 3
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["iteration"] == log[-1]["iteration"]
    train(pictures, tmp_path, minutes=0.15, device="cpu", pixels=1 << 13)
    again = json.loads((tmp_path / "log.json").read_text())
    assert again[: len(log)] == log
    assert again[-1]["iteration"] > log[-1]["iteration"]
    assert backbones.load(tmp_path / "model.safetensors").fingerprint != model.fingerprint


def test_the_loss_is_a_weighted_squared_error(fresh):
    """For an untrained network it is the prior's error over the square of the scale, level by level."""
    prior = backbones.load("gaussian-prior")
    assert isinstance(prior, SpectrumPrior)
    net = ConvDenoiser(prior, widths=(8, 8), blocks=1, embedding=8)
    x0 = crops([np.asarray(fresh.integers(0, 256, (80, 90, 3)), np.uint8)], 2, 64, fresh)
    assert x0.shape == (2, 3, 64, 64)
    lam = torch.tensor([0.2, 2.0])
    torch.manual_seed(5)
    loss = weighted_loss(net, x0, lam)
    torch.manual_seed(5)
    y = x0 + lam[:, None, None, None] * torch.randn_like(x0)
    error = (prior.posterior_mean(y, lam) - x0).square().mean((1, 2, 3))
    scale = 0.2 * lam / (lam**2 + 0.25).sqrt()
    assert loss.item() == pytest.approx((error / scale**2).mean().item(), rel=1e-5)
