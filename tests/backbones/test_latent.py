"""Latent models: an autoencoder around any backbone; the tiny autoencoder and those of diffusers."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common import Shrink, random_images
from families_kit import LEVELS, TIMES, Gaussian, ddpm, edm, flow, walk
from noisebook.backbones import fingerprint_of
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder, TinyAutoencoder, read_taesd
from noisebook.backbones.wrappers.latent import Latent
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError, ImageError
from noisebook.spec.presets import Recipe


class Linear(nn.Module):
    """z = gain * image + offset, with `factor` x `factor` pixels folded into channels."""

    def __init__(self, factor: int = 1, gain: float = 1.0, offset: float = 0.0):
        super().__init__()
        self.factor, self.sigma_up, self.offset = factor, gain, offset

    def encode(self, images):
        return self.sigma_up * nn.functional.pixel_unshuffle(images, self.factor) + self.offset

    def decode(self, z):
        return nn.functional.pixel_shuffle((z - self.offset) / self.sigma_up, self.factor)


def named(backbone):
    backbone.name, backbone.fingerprint = "test", fingerprint_of({"kind": "test"}, {})
    return backbone


def codec(backbone, **changes) -> Codec:
    recipe = Recipe(**{"steps": 6, "sigma_max": 4, "sigma_min": 0.1, "vocab_size": 256, "start_budget": 1, **changes})
    return Codec(recipe.build(backbone), backbone)


@pytest.mark.parametrize("make", [partial(ddpm, prediction="epsilon"), edm, partial(flow, reverse=False, time_scale=1.0)])
def test_under_an_identity_autoencoder_it_is_the_inner_model(make, fresh):
    g = Gaussian(fresh)
    inner, latent = named(make(g)), named(Latent(make(g), Linear(), factor=1))
    images = random_images(fresh, 2, 4, 4)
    tokens, decoded = codec(inner).reconstruct(images)
    found = codec(latent).reconstruct(images)
    assert torch.equal(found[0], tokens)
    assert torch.equal(found[1], decoded)


def test_scale_and_shift_are_a_change_of_units(noise, fresh):
    """The walk of the images' Gaussian is that of (z - shift) * scale's, at levels `gain * scale` times as high."""
    g, gain, offset, shift, scale = Gaussian(fresh), 3.0, 0.4, -0.7, 0.25
    inner = Gaussian(fresh)
    inner.mean, inner.variances, inner.vectors = (
        (gain * g.mean + offset - shift) * scale,
        (gain * scale) ** 2 * g.variances,
        g.vectors,
    )
    latent = Latent(inner, Linear(1, gain, offset), scale=scale, shift=shift, factor=1)
    levels, start = [LEVELS[t] for t in TIMES], LEVELS[TIMES[0]] * noise[-1]
    wanted = walk(g, noise[:-1], levels, 0.5, start)
    units = gain * scale
    found = walk(latent, noise[:-1], [units * sigma for sigma in levels], 0.5, latent.encode(start))
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()
    torch.testing.assert_close(latent.decode(latent.encode(start)), start, rtol=0, atol=1e-9)


class Wide(Shrink):
    """White noise of 12 channels, whose sizes are multiples of 2."""

    channels, multiple = 12, 2


def test_sizes_are_those_of_the_images(fresh):
    latent = named(Latent(Wide(), Linear(2), factor=2))
    assert (latent.multiple, latent.size, latent.native_size) == (4, None, None)
    assert latent.padded(17, 20) == (20, 20)
    assert latent.state_shape(20, 24) == (12, 10, 12)
    images = random_images(fresh, 2, 17, 22)
    tokens, predicted = codec(latent, budget=64, steps=10).reconstruct(images)
    assert predicted.shape == (2, 3, 17, 22)
    assert torch.equal(codec(latent, budget=64, steps=10).decode(tokens, (17, 22)), predicted)
    truth = images.float() / 127.5 - 1
    assert (predicted - truth).square().mean() < 0.2 * truth.square().mean()
    inner = Wide()
    inner.size = (8, 6)
    latent = Latent(inner, Linear(2), factor=2)
    assert (latent.size, latent.padded(3, 12)) == ((16, 12), (16, 12))
    with pytest.raises(ImageError, match="16, 12"):
        latent.padded(17, 12)


def test_levels_and_precision_are_the_inner_backbones(fresh):
    model = Latent(ddpm(Gaussian(fresh), "epsilon"), Linear(), factor=1)
    assert model.round_sigma(1.0) == model.inner.round_sigma(1.0) != 1.0
    assert not model.pure_noise
    assert Latent(flow(Gaussian(fresh), False, 1.0), Linear()).pure_noise
    version = model.version
    assert model.accelerate(torch.bfloat16).version > version
    assert model.inner.net.device.dtype == torch.bfloat16
    grid = DDPM(nn.Identity(), [0.5, 0.0], "sample")
    assert Latent(grid, Linear()).pure_noise


def test_what_does_not_fit_is_said(fresh):
    with pytest.raises(BackboneError, match="encode"):
        Latent(Wide(), nn.Identity())
    latent = named(Latent(Wide(), Linear(4), factor=2))
    with pytest.raises(BackboneError, match=r"\[48, 4, 4\].*\[12, 8, 8\].*factor"):
        codec(latent).encode(random_images(fresh, 1, 16, 16))


# ---- the tiny autoencoder --------------------------------------------------------------------------------------------
def write_taesd(folder, vae):
    """The weights of diffusers' AutoencoderTiny in the published files' layout, whose decoder begins with the clamp."""
    halves = {"encoder": {}, "decoder": {}}
    for name, tensor in vae.state_dict().items():
        half, _, place, rest = name.split(".", 3)
        halves[half][f"{int(place) + (half == 'decoder')}.{rest}"] = tensor
    for half, tensors in halves.items():
        torch.save(tensors, folder / f"{half}.pth")
    return folder / "encoder.pth", folder / "decoder.pth"


@pytest.mark.parametrize("latent_channels", [4, 16])
@torch.no_grad()
def test_the_classic_layout_is_that_of_diffusers(latent_channels, tmp_path, fresh):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    diffusers.AutoencoderTiny(latent_channels=latent_channels).save_pretrained(tmp_path / "tiny")
    wrapped = DiffusersAutoencoder(diffusers.AutoencoderTiny.from_pretrained(tmp_path / "tiny").eval())
    ours = read_taesd(*write_taesd(tmp_path, wrapped.vae))
    images = random_images(fresh, 1, 16, 32).float() / 127.5 - 1
    z = wrapped.encode(images)
    assert z.shape == (1, latent_channels, 2, 4)
    torch.testing.assert_close(ours.encode(images), z, rtol=1e-4, atol=1e-5)
    z = 4 * torch.from_numpy(fresh.normal(size=z.shape)).float()  # so that the clamp matters
    torch.testing.assert_close(ours.decode(z), wrapped.decode(z), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_tiny_autoencoder_on_photographs(data):
    """The published TAEF2: 29.96 dB on the whole of Kodak 01 to 06, 29.87 on the crops here [measured]."""
    files = [data / f"weights/taef2_{half}.pth" for half in ("encoder", "decoder")]
    if not files[0].is_file():
        pytest.skip("no weights of TAEF2")
    model, found = read_taesd(*files), []
    for i in (1, 2, 3):
        picture = np.array(Image.open(data / f"kodak/kodim{i:02}.png"))[128:384, 256:512]
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        z = model.encode(x / 127.5 - 1)
        assert z.shape == (1, 32, 32, 32)
        error = (model.decode(z) * 127.5 + 127.5).round().clamp(0, 255) - x
        found.append(10 * math.log10(255**2 / error.square().mean()))
    assert np.mean(found) > 29.8


class Planted:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return open, ("planted", "w")


def test_files_that_are_no_autoencoder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = TinyAutoencoder(4, pooled=True)
    for half in ("encoder", "decoder"):
        torch.save(getattr(model, half).state_dict(), f"{half}.pth")
    read_taesd("encoder.pth", "decoder.pth")
    with pytest.raises(BackboneError, match=r"no such file"):
        read_taesd("encoder.pth", "elsewhere.pth")
    with pytest.raises(BackboneError, match="TAESD's layout"):
        read_taesd("decoder.pth", "encoder.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "encoder.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "planted.pth").write_bytes(pickle.dumps(Planted(), protocol=2))
    torch.save({"0.weight": Planted()}, "object.pth")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save([torch.zeros(3)], "list.pth")
    with pytest.raises(BackboneError, match="TAESD's layout"):
        read_taesd("list.pth", "decoder.pth")
    for name in ("short.pth", "text.pth", "planted.pth", "object.pth", "text.safetensors"):
        with pytest.raises(BackboneError, match="damaged") as info:
            read_taesd(name, "decoder.pth")
        assert "\n" not in str(info.value)
    assert not (tmp_path / "planted").exists()


# ---- AutoencoderKL ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    """A tiny seeded AutoencoderKL, 2 x 2 pixels to 4 channels, saved and loaded again."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(5)
    widths = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    path = tmp_path_factory.mktemp("vae")
    diffusers.AutoencoderKL(**widths, **blocks).save_pretrained(path)
    return diffusers.AutoencoderKL.from_pretrained(path).eval().requires_grad_(False)


class Four(Shrink):
    channels = 4


@torch.no_grad()
def test_autoencoder_kl_gives_the_posterior_mean(kl, fresh):
    images = random_images(fresh, 2, 16, 24).float() / 127.5 - 1
    latent = named(Latent(Four(), DiffusersAutoencoder(kl), scale=0.18215, shift=0.1, factor=2))
    state, posterior = latent.encode(images), kl.encode(images).latent_dist
    torch.testing.assert_close(state, (posterior.mean - 0.1) * 0.18215, rtol=0, atol=1e-6)
    assert (posterior.std > 1e-3).all()  # a sample would be another
    torch.testing.assert_close(latent.decode(state), kl.decode(posterior.mean).sample, rtol=0, atol=1e-5)
    made = codec(latent, budget=16)
    tokens, predicted = made.reconstruct(images[..., :15, :23])
    assert predicted.shape == (2, 3, 15, 23)
    assert torch.equal(made.decode(tokens, (15, 23)), predicted)
