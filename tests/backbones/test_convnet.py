"""The network behind `photo` and the CIFAR-10 models, its checkpoint and the registry."""

import pytest
import torch

from noisebook import BackboneError, backbones
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.backbones.nets.gaussian import SpectrumPrior


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
        mixed = ConvDenoiser(prior)
        mixed.mixed = True  # as in training on a GPU
        assert torch.equal(mixed(y, torch.tensor([0.3, 0.3])), prior(y, 0.3))


def test_mixed_precision_is_near_and_not_the_same(fresh):
    net, y = tiny(), torch.from_numpy(fresh.standard_normal((2, 3, 32, 48), "float32"))
    with torch.no_grad():
        plain = net(y, torch.tensor([0.3, 2.0]))
        net.mixed = True
        mixed = net(y, torch.tensor([0.3, 2.0]))
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - plain).square().mean() < 1e-3 * plain.square().mean()


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
    from noisebook.images.io import sample

    model = backbones.load(name)
    h, w = model.padded(100, 150)
    x = torch.from_numpy(sample("cat")[:h, :w].copy()).permute(2, 0, 1)[None].float() * (2 / 255) - 1
    noise = torch.from_numpy(fresh.standard_normal(tuple(x.shape), "float32"))
    for sigma in (0.1, 0.3, 1.0, 3.0):
        error = (model(x + sigma * noise, sigma) - x).square().mean()
        assert error < 0.6 * sigma**2 / (1 + 4 * sigma**2), sigma


@pytest.mark.parametrize("name", [name for name in backbones.shipped() if name != "gaussian-prior"])
def test_shipped_networks_do_no_worse_beyond_the_levels_they_were_trained_on(name, fresh):
    """Below them the image stays what it is; above them the error is that of the highest of them."""
    from noisebook.images.io import sample

    model = backbones.load(name)
    h, w = model.padded(64, 64)
    x = torch.from_numpy(sample("cat")[100 : 100 + h, 100 : 100 + w].copy()).permute(2, 0, 1)[None].float() * (2 / 255) - 1
    noise = torch.from_numpy(fresh.standard_normal(tuple(x.shape), "float32"))

    def error(sigma: float) -> float:
        return float((model(x + sigma * noise, sigma) - x).square().mean())

    low, high, beyond = model.round_sigma(0.001), model.round_sigma(80.0), model.round_sigma(400.0)
    assert error(low) < 1.2 * low**2
    assert error(beyond) < 1.5 * error(high)


def test_the_default_network_beats_the_gaussian_prior_on_photographs():
    from noisebook.images.io import sample

    net, prior = backbones.load("photo"), backbones.load("gaussian-prior")
    for picture in ("astronaut", "cat", "coffee"):
        x = torch.from_numpy(sample(picture)[:256, :256].copy()).permute(2, 0, 1)[None].float() * (2 / 255) - 1
        for sigma in (0.1, 0.2, 0.5):
            y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            assert (net(y, sigma) - x).square().mean() < 0.95 * (prior(y, sigma) - x).square().mean(), (picture, sigma)
