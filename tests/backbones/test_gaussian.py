"""The Gaussian priors against dense float64 posterior means, and the shipped spectrum on photographs."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import ROOT
from noisebook import backbones
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.nets import gaussian
from noisebook.backbones.registry import WEIGHTS
from noisebook.cli import main as cli
from noisebook.errors import BackboneError, ImageError
from noisebook.images.archive import load_npz_images

MEASURED = {0.1: 0.00266, 0.3: 0.01034, 1.0: 0.02627}  # sigma: mean squared error on the crops of the last test
DATA = Path(os.environ.get("NOISEBOOK_DATA", ROOT.parent / "shared/data"))


def dense_posterior(mean, covariance, y, sigma):
    """E[x0 | y = x0 + sigma eps], float64 [D], by a linear solve."""
    return mean + covariance @ torch.linalg.solve(covariance + sigma**2 * torch.eye(len(mean)).double(), y - mean)


def smooth_images(count, size, channels, seed=0):
    """uint8 [count, size, size, channels] images with a falling spectrum."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size, channels))
    walk = noise.cumsum(1).cumsum(2)
    walk = 40 * (walk - walk.mean((1, 2), keepdims=True)) / walk.std() + 8 * noise
    return (walk + 120).clip(0, 255).astype(np.uint8)


def shipped_prior():
    prior = backbones.load("gaussian-prior")
    assert isinstance(prior, gaussian.SpectrumPrior)
    return prior


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [0.03, 0.5, 4.0])
def test_pca_is_the_posterior_mean_of_the_sample_covariance(channels, sigma):
    images = smooth_images(40, 5, channels)  # fewer images than the 75 dimensions of colour: a singular covariance
    x = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).double() / 127.5 - 1
    prior = gaussian.pca_from_checkpoint(*gaussian.fit_pca(images))
    assert (prior.size, prior.channels) == ((5, 5), channels)
    assert (prior.variances >= 0).all()
    y = x[:3] + sigma * torch.randn(x[:3].shape, generator=torch.Generator().manual_seed(1)).double()
    want = torch.stack([dense_posterior(x.mean(0), torch.cov(x.T, correction=0), row, sigma) for row in y])
    got = prior.denoise(y.float().view(3, channels, 5, 5), sigma)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.flatten(1).double(), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 6)])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_spectrum_is_the_posterior_mean_of_its_dense_covariance(size, sigma):
    prior, dim = shipped_prior(), 3 * size[0] * size[1]
    assert torch.allclose(prior.colour @ prior.colour.T, torch.eye(3), atol=1e-6)
    k, n = (torch.arange(max(size)).double()[i] for i in ((slice(None), None), (None, slice(None))))
    dct = []
    for m in size:  # the definition, written out
        basis = torch.cos(torch.pi * (n[:, :m] + 0.5) * k[:m] / m) * (2 / m) ** 0.5
        basis[0] /= 2**0.5
        dct.append(basis)
    basis = torch.kron(prior.colour.double(), torch.kron(dct[0], dct[1]))  # [D, D], coefficient by (channel, y, x)
    covariance = basis.T @ torch.diag(prior.spectrum(*size).double().flatten()) @ basis
    mean = prior.mean.double().repeat_interleave(size[0] * size[1])
    y = torch.randn(dim, generator=torch.Generator().manual_seed(2)).double()
    got = prior.denoise(y.float().view(1, 3, *size), sigma).flatten().double()
    torch.testing.assert_close(got, dense_posterior(mean, covariance, y, sigma), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 31), (64, 64), (300, 33)])
def test_a_batch_equals_its_images(size):
    prior = shipped_prior()
    y = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(3))
    batch = prior.denoise(y, 0.4)
    assert batch.shape == y.shape
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, torch.cat([prior.denoise(x[None], 0.4) for x in y]), rtol=0, atol=1e-5)


def test_spectrum_falls_with_frequency_and_meets_its_table():
    prior = shipped_prior()
    for size in ((256, 256), (768, 512), (24, 40)):
        variance = prior.spectrum(*size)
        assert variance.shape == (3, *size)
        assert (variance > 0).all()
        low, high = variance[:, : size[0] // 4, : size[1] // 4], variance[:, size[0] // 2 :, size[1] // 2 :]
        assert (low.mean((1, 2)) > 20 * high.mean((1, 2))).all()
    at_nodes = prior.spectrum(256, 256)[:, gaussian.NODES][:, :, gaussian.NODES].log()
    torch.testing.assert_close(at_nodes[:, 1:, 1:], prior.log_variance[:, 1:, 1:], rtol=1e-5, atol=1e-5)
    # the same frequencies in an image of twice the size: the density does not depend on the size
    torch.testing.assert_close(prior.spectrum(512, 512)[:, 2::2, 2::2], prior.spectrum(256, 256)[:, 1:, 1:])


def test_limits_of_the_noise_level_and_gradients():
    prior, x = shipped_prior(), torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(prior.denoise(x, 1e-5), x, rtol=0, atol=1e-4)
    with torch.inference_mode():  # what this caches must serve gradients too
        prior.denoise(x[..., :19, :], 1.0)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.denoise(x[..., :19, :], 1.0).sum(), x)
    assert 0 < gradient[..., :19, :].mean() < 1
    x = x.detach()
    torch.testing.assert_close(prior.denoise(x, 1e5), prior.mean.view(1, 3, 1, 1).expand_as(x), rtol=0, atol=1e-4)


def test_spectrum_fit_recovers_a_known_spectrum():
    """Images drawn from a separable power law: the fitted table is that law, at nodes where the mean is over many."""
    rng, k = np.random.default_rng(5), np.arange(256)
    deviation = 8 / np.sqrt((1 + (k[:, None] / 20) ** 2) * (1 + (k[None, :] / 40) ** 2))
    dct = gaussian.dct_matrix(256, torch.device("cpu")).numpy()
    noise = rng.standard_normal((24, 3, 256, 256)) * deviation * np.array([3.0, 2.0, 1.0])[:, None, None]
    images = np.rint(dct.T @ noise @ dct + 127).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    _, tensors = gaussian.fit_spectrum(list(images))
    prior = gaussian.SpectrumPrior(**tensors)
    assert prior.colour.abs().argmax(1).tolist() == [0, 1, 2]
    want = np.log((9 * deviation**2 + 1 / 12) / 127.5**2)  # and the noise of rounding to 8 bits
    got = prior.spectrum(256, 256)[0].log().numpy()
    assert abs((got - want)[1:, 1:].mean()) < 0.05  # log of a mean of 24 squares: biased by -1/24
    assert abs((got - want)[10:, 10:]).max() < 0.6


def test_checkpoints_keep_results_and_fingerprint(tmp_path):
    config, tensors = gaussian.fit_pca(smooth_images(30, 4, 3))
    for kind, c, t in (("pca-prior", config, tensors), read_checkpoint(WEIGHTS / "gaussian-prior.safetensors")):
        write_checkpoint(tmp_path / "a.safetensors", kind, c, t)
        first, again = (backbones.load(tmp_path / "a.safetensors") for _ in range(2))
        built = getattr(gaussian, kind.removesuffix("-prior") + "_from_checkpoint")(c, t)
        assert first.fingerprint == again.fingerprint
        assert len(first.fingerprint) == 64
        y = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(6))
        assert torch.equal(first.denoise(y, 0.3), built.denoise(y, 0.3))
        flipped = {k: v.clone() for k, v in t.items()}
        flipped["mean"].view(torch.int32)[0] ^= 1
        write_checkpoint(tmp_path / "b.safetensors", kind, c, flipped)
        assert backbones.load(tmp_path / "b.safetensors").fingerprint != first.fingerprint


def test_wrong_tensors_and_sizes_are_refused():
    config, tensors = gaussian.fit_pca(smooth_images(30, 4, 3))
    for bad_config, bad in (
        ({**config, "size": [4, 5]}, tensors),
        ({**config, "size": [4]}, tensors),
        ({}, tensors),
        (config, {**tensors, "more": tensors["mean"]}),
        (config, {k: v for k, v in tensors.items() if k != "mean"}),
    ):
        with pytest.raises(BackboneError):
            gaussian.pca_from_checkpoint(bad_config, bad)
    _, config, tensors = read_checkpoint(WEIGHTS / "gaussian-prior.safetensors")
    for bad_config, bad in (
        ({**config, "nodes": [0, 1]}, tensors),
        (config, {**tensors, "mean": torch.zeros(1)}),
        (config, {"mean": tensors["mean"]}),
    ):
        with pytest.raises(BackboneError):
            gaussian.spectrum_from_checkpoint(bad_config, bad)
    with pytest.raises(ImageError):
        shipped_prior().denoise(torch.zeros(1, 1, 8, 8), 1.0)
    with pytest.raises(ImageError):
        gaussian.fit_spectrum([np.zeros((255, 300, 3), np.uint8)])
    with pytest.raises(ImageError):
        gaussian.fit_pca(np.zeros((4, 4, 4, 3), np.float32))


def test_archives_and_the_command(tmp_path):
    images = smooth_images(12, 6, 3)
    np.savez(tmp_path / "plain.npz", images=images)
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "webp", lossless=True)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(tmp_path / "webp.npz", webp=np.concatenate(files), offsets=np.cumsum([0] + [len(f) for f in files]))
    for name in ("plain.npz", "webp.npz"):
        assert np.array_equal(np.stack(load_npz_images(tmp_path / name)), images)
        assert len(load_npz_images(tmp_path / name, 5)) == 5
    np.savez(tmp_path / "other.npz", labels=images)
    np.savez(tmp_path / "floats.npz", images=images / 255)
    np.savez(tmp_path / "damaged.npz", webp=np.zeros(9, np.uint8), offsets=np.array([0, 9]))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "floats.npz", "damaged.npz", "text.npz", "absent.npz"):
        with pytest.raises(ImageError, match=name):
            load_npz_images(tmp_path / name)
    cli.main(["fit-prior", "pca", str(tmp_path / "webp.npz"), "-o", str(tmp_path / "p.safetensors"), "--count", "10"])
    kind, config, tensors = read_checkpoint(tmp_path / "p.safetensors")
    want_config, want = gaussian.fit_pca(images[:10])
    assert (kind, config) == ("pca-prior", want_config)
    assert tensors.keys() == want.keys()
    assert all(torch.equal(tensors[k], want[k]) for k in want)


@pytest.mark.skipif(not (DATA / "kodak").is_dir(), reason="needs the Kodak photographs")
def test_the_shipped_spectrum_on_photographs():
    """Measured 2026-11-21 on these crops, with a fifth of slack; shrinking each pixel alone is far behind."""
    prior, errors = shipped_prior(), {}
    paths = sorted((DATA / "kodak").glob("*.png"))[:6]
    crops = np.stack([np.asarray(Image.open(p).convert("RGB"))[100:356, 200:456] for p in paths])
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    variance = (x - x.mean((2, 3), keepdim=True)).var().item()
    for sigma, most in MEASURED.items():
        y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        errors[sigma] = (prior.denoise(y, sigma) - x).square().mean().item()
        assert errors[sigma] < 1.2 * most
        assert errors[sigma] < 0.5 * variance * sigma**2 / (variance + sigma**2)
