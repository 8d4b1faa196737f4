"""`check` finds each fault that it looks for, says what to do, and finds none in a backbone without one."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import noisebook
from common import Shrink, random_images
from noisebook import backbones
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.wrappers.latent import Latent
from noisebook.backbones.wrappers.ranged import Ranged
from noisebook.cli.main import main
from noisebook.codec.accuracy import other_range
from noisebook.codec.baseline import gaussian_errors, multiple_error
from noisebook.codec.checkup import check
from noisebook.errors import BackboneError, ImageError, SpecError
from noisebook.images import io as images_io

pytestmark = pytest.mark.quick


def speckles(rng: np.random.Generator, count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Images uint8 of independent pixels, of which `Shrink` is a model that is good enough."""
    return torch.from_numpy(rng.integers(0, 256, (count, channels, height, width))).to(torch.uint8)


@pytest.fixture
def images(fresh) -> torch.Tensor:
    return speckles(fresh, 4, 32, 32)


def faults(result) -> dict[str, str]:
    """What is said of each check that failed."""
    assert result.ok == all(row.ok for row in result.rows)
    assert all(row.ok != bool(row.do) for row in result.rows), "who fails says what to do, and only who fails"
    assert str(result).count("FAIL") == sum(not row.ok for row in result.rows)
    json.dumps(result.as_dict(), allow_nan=False)
    return {row.name: f"{row.found}: {row.do}" for row in result.rows if not row.ok}


def test_a_backbone_without_a_fault(images):
    result = noisebook.check(Shrink(), images)
    assert not faults(result)
    assert [round(level.sigma, 2) for level in result.levels] == [0.05, 0.12, 0.28, 0.65, 1.53, 3.61, 8.5, 20]
    assert (result.backbone, result.images, result.size, result.batch) == ("shrink", 4, (32, 32), 4)
    assert result.seconds is not None
    assert 0 < result.seconds < 60
    names = [row.name for row in result.rows]
    assert names[:6] == ["fingerprint", "description", "state", "call", "levels", "finite"]
    assert names[-7:] == ["range", "input", "repeatable", "rows of a batch", "sizes", "time", "memory"]


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    crops = [images_io.sample(name)[40:104, 100:164].copy() for name in ("astronaut", "coffee")]
    return torch.stack([torch.from_numpy(crop).permute(2, 0, 1) for crop in crops])


def test_errors_are_beside_those_of_a_gaussian(photos):
    """The prior of photographs is a Gaussian: about as good as the best one for two photographs; both beat doing nothing."""
    result = check("gaussian-prior", photos)
    assert not faults(result)
    for level in result.levels:
        assert 0.85 * level.gaussian < level.mse < 2 * level.gaussian, level
        assert level.gaussian < 0.7 * level.nothing, level


def test_a_gaussian_s_error_is_that_of_its_wiener_filter(fresh):
    """White noise of three variances in three channels that are mixed; and noise of a spectrum, filtered at its own DCT."""
    levels = [0.1, 1.0, 5.0]
    scale = torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1)
    white = torch.from_numpy(fresh.normal(size=(16, 3, 32, 24))).float() * scale
    mix = torch.linalg.qr(torch.from_numpy(fresh.normal(size=(3, 3))).float())[0]
    mixed = torch.einsum("cd,bdhw->bchw", mix, white) + 0.3
    for sigma, found in zip(levels, gaussian_errors(mixed.split(8), levels), strict=True):
        wanted = sum(v * sigma**2 / (v + sigma**2) for v in (0.01, 0.25, 1.0)) / 3
        assert found == pytest.approx(wanted, rel=0.03)
    assert multiple_error(0.5, 0.1) == pytest.approx(0.5 * 0.01 / 0.51)


class Sick(Shrink):
    """A backbone whose x0_hat is what `change` makes of the right one."""

    def __init__(self, change=lambda x0_hat, y, sigma: x0_hat, **attributes):
        super().__init__()
        self.change = change
        for name, value in attributes.items():
            setattr(self, name, value)

    def denoise(self, y, sigma, cond=None):
        return self.change(super().denoise(y, sigma), y, sigma)


def eighths(x0_hat, y, sigma):
    """As a U-Net does, without words where it does not fit."""
    small = nn.functional.avg_pool2d(x0_hat, 8)
    return x0_hat + 0 * nn.functional.interpolate(small, scale_factor=8.0)


def one_size(x0_hat, y, sigma):
    return (x0_hat.flatten(2) @ torch.eye(1024)).view_as(y)


def only_one(x0_hat, y, sigma):
    if len(y) > 1:
        raise IndexError("one at a time")
    return x0_hat


def far_out(x0_hat, y, sigma):
    """Two in a hundred values beyond 1.5, whose errors are lost in those of the rest."""
    flat = x0_hat.flatten().clone()
    flat[::50] = 1.6 if sigma > 1 else flat[::50]
    return flat.view_as(x0_hat)


def in_place(x0_hat, y, sigma):
    return y.copy_(x0_hat)


FAULTS = {
    "no fingerprint": (Sick(fingerprint=""), "fingerprint", "which weights made it.*fingerprint_of"),
    "an odd fingerprint": (Sick(fingerprint="mine"), "fingerprint", "64 hex digits.*fingerprint_of"),
    "four channels": (Sick(channels=4), "description", "channels = 4: images have 3 channels .RGB. or 1"),
    "no multiple": (Sick(multiple=0), "description", "multiple = 0, size = None: multiple is a whole number"),
    "a size of three": (Sick(size=(3, 32, 32)), "description", "size None or .height, width."),
    "a tuple": (Sick(lambda x, y, s: (x,)), "call", "gives a tuple: return the tensor"),
    "half the width": (
        Sick(lambda x, y, s: x[..., ::2]),
        "call",
        r"\[1, 3, 32, 16\] .*for \[1, 3, 32, 32\].*shape and type",
    ),
    "float64": (Sick(lambda x, y, s: x.double()), "call", r"float64 for .*shape and type of y"),
    "an error": (Sick(lambda x, y, s: x + [][0]), "call", "raises IndexError: list .*denoise.y, sigma, cond=None. takes"),
    "a level that is no tensor": (
        Sick(lambda x, y, s: x * s.reshape(-1)),
        "call",
        r"has no attribute 'reshape': .*and a float; for a network that takes a tensor \[B\], .*network.full\(y, sigma\)",
    ),
    "channels": (Flow(nn.Identity(), channels=3), "call", "raises BackboneError"),
    "levels that move": (Sick(round_sigma=lambda s: 1.01 * s), "levels", "round_sigma.*a level that it knows as it is"),
    "levels of infinity": (Sick(round_sigma=lambda s: math.inf), "levels", "is inf"),
    "NaN": (Sick(lambda x, y, s: x / (0 if s > 5 else 1)), "finite", "at sigma = 8.5, 20: look for a division"),
    "some values far out": (Sick(far_out), "range", "beyond 1.5 at sigma = .*prediction of noise"),
    "noise in place of x0": (Sick(lambda x, y, s: (y - x) / s * 3), "range", "beyond 1.5 at sigma = .*: see errors"),
    "y itself": (Sick(lambda x, y, s: y), "errors", r"sigma = .*, 3.61, .* Were the images .* trained on in \[-1, 1\]\?"),
    "the error of a level": (Sick(lambda x, y, s: y), "error at 3.61", "worse than doing nothing, see errors"),
    "another time": (Sick(lambda x, y, s: -x), "errors", "sigma = 0.05, .* direction"),
    "one image only": (Sick(only_one), "errors", "raises IndexError: one at a time: it worked with one image"),
    "y is changed": (Sick(in_place), "input", "denoise changes y: work on a copy"),
    "dropout": (Sick(lambda x, y, s: x + 0.01 * torch.randn(y.shape)), "repeatable", r"by 0.0\d+: call .eval\(\)"),
    "batch norm": (Sick(lambda x, y, s: x + 0.1 * y.mean(0)), "rows of a batch", r"a row by itself .* call .eval\(\)"),
    "needs eighths": (Sick(eighths), "sizes", "19 x 30 fails: RuntimeError: .*it takes multiples of 8: set multiple = 8"),
    "one size": (Sick(one_size), "sizes", r"or size = \(height, width\) if it takes only one"),
    "no pure noise": (Sick(lambda x, y, s: y - s * y, pure_noise=True), "pure noise", "pure_noise = False"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_says_what_to_do(fault, images):
    backbone, name, said = FAULTS[fault]
    found = faults(check(backbone, images))
    assert name in found, found
    assert re.search(said, found[name]), found[name]


PREDICTIONS = {  # eps(y, sigma) of the prior -> x0_hat; what is said of it
    "another unit of the level": (lambda eps, y, s: y - s * eps(y, 2 * s), "4 of 8 levels.*the level in its own unit"),
    "a wrong sign": (lambda eps, y, s: y + s * eps(y, s), "noise is added and not taken away: change the sign"),
    "eps": (lambda eps, y, s: eps(y, s), "x0_hat looks like the noise: make x0_hat of what"),
    "a score": (lambda eps, y, s: -eps(y, s) / s, "x0_hat looks like the noise: make x0_hat of what"),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_that_is_taken_wrongly_is_told_once(prediction, photos):
    change, said = PREDICTIONS[prediction]
    prior = backbones.load("gaussian-prior")
    made = Sick(lambda x0_hat, y, sigma: change(lambda y, s: (y - prior(y, s)) / s, y, sigma))
    found = faults(check(made, photos))
    assert next(iter(found)) == "errors", found
    assert re.search(said, found["errors"]), found["errors"]
    assert all(text.endswith("see errors") for name, text in found.items() if name.startswith(("error at", "range")))


def test_grey_for_colour_is_said(images):
    grey = Flow(nn.Conv2d(1, 1, 3, padding=1))
    grey.net.forward = lambda x, t, plain=grey.net.forward: plain(x)
    grey.fingerprint = "a" * 64
    assert "it takes images of 1 channel: set channels = 1" in faults(check(grey, images))["call"]


class Halves(nn.Module):
    def encode(self, images):
        return nn.functional.avg_pool2d(images, 2)

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=2.0)


class Loud(Halves):
    """It gives images in [-127.5, 127.5], which nobody has said."""

    def decode(self, z):
        return 127.5 * super().decode(z)


def test_an_autoencoder_of_another_range_is_a_fault(images):
    good = Latent(Shrink(), Halves(), scale=2, factor=2)
    good.fingerprint = "a" * 64
    result = check(good, images)
    assert not faults(result)
    assert "dB" in next(row.found for row in result.rows if row.name == "autoencoder")
    bad = Latent(Shrink(), Loud(), factor=2)
    bad.fingerprint = "a" * 64
    assert "images in [-1, 1]: is the autoencoder for another range?" in faults(check(bad, images))["autoencoder"]


class Binary(Shrink):
    """The exact posterior mean of pixels that are -1 or 1 with equal odds."""

    def denoise(self, y, sigma, cond=None):
        return (y / sigma**2).tanh()


class Foreign(Shrink):
    """The same of pixels that are `low` or `high`, as a model of somebody else's."""

    def __init__(self, low, high):
        super().__init__()
        self.scale, self.shift = (high - low) / 2, (high + low) / 2

    def denoise(self, y, sigma, cond=None):
        return Binary().denoise((y - self.shift) / self.scale, sigma / self.scale) * self.scale + self.shift


@pytest.mark.parametrize("ends", [(0, 1), (-0.5, 0.5), (0, 255)])
def test_a_model_of_another_range_is_told_which_and_is_well_in_it(ends, fresh):
    images = torch.from_numpy(fresh.integers(0, 2, (4, 3, 16, 16)) * 255).to(torch.uint8)
    assert not faults(check(Binary(), images))
    shown = f"Ranged(backbone, {ends[0]:g}, {ends[1]:g})"
    found = faults(check(Foreign(*ends), images))
    assert shown in found["images"], found
    assert "error at 20" not in found or found["error at 20"].endswith(", see images")
    assert not found.keys() & {"errors"}
    well = check(Ranged(Foreign(*ends), *ends), images)
    assert not faults(well)


@pytest.mark.parametrize(
    ("model", "declared", "right", "said"),
    [
        (Foreign(-0.5, 0.5), (0, 1), (-0.5, 0.5), "ranged.Ranged(inner, -0.5, 0.5) in place of Ranged(inner, 0, 1);"),
        (Foreign(0, 255), (-0.5, 0.5), (0, 255), "ranged.Ranged(inner, 0, 255) in place of Ranged(inner, -0.5, 0.5);"),
        (Binary(), (0, 255), (-1, 1), "take inner itself in place of Ranged(inner, 0, 255);"),
    ],
)
def test_a_wrong_range_around_a_model_is_told(model, declared, right, said, fresh):
    x = torch.from_numpy(fresh.integers(0, 2, (4, 3, 16, 16)) * 2.0 - 1).float()
    row = other_range(Ranged(model, *declared), x, torch.Generator().manual_seed(0))
    assert row is not None
    assert said in row.do
    assert other_range(Ranged(model, *right), x, torch.Generator().manual_seed(0)) is None


def test_what_is_no_backbone_and_what_is_no_image(images):
    with pytest.raises(BackboneError, match="derive a class"):
        check(nn.Identity(), images)  # pyright: ignore
    with pytest.raises(ImageError, match="no images to check on"):
        check(Shrink(), [])
    with pytest.raises(ImageError, match=r"must be \[B, 3, H, W\]"):
        check(Shrink(), images[:, :1])
    with pytest.raises(ImageError, match=r"of those in \[0, 1\] make 2 \* images - 1"):
        check(Shrink(), images.float())
    with pytest.raises(SpecError, match="takes no conditions"):
        check(Shrink(), images, conditions={"label": 1})
    assert not faults(check(Shrink(), [images.float() / 127.5 - 1, images[:1, :, :17, :9]]))


# ---- the command ------------------------------------------------------------------------------------------------------
MODULE = """
import torch
from noisebook.backbones import Backbone

class Grey(Backbone):
    name, fingerprint, channels, size = "grey", "a" * 64, 1, (28, 28)

    def denoise(self, y, sigma, cond=None):
        return y * (0.25 / (0.25 + sigma * sigma))

class Centred(Grey):
    def denoise(self, y, sigma, cond=None):
        return (y / (0.25 * (1 + 4 * sigma**2)))
"""


@pytest.fixture
def digits(tmp_path, monkeypatch, fresh):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_checked.py").write_text(MODULE)
    np.savez(tmp_path / "digits.npz", images=speckles(fresh, 6, 28, 28, 1).permute(0, 2, 3, 1).numpy())
    yield "digits.npz"
    sys.modules.pop("mine_checked", None)


def test_the_command_prints_a_table_and_fails_where_a_check_does(digits, capsys):
    assert main(["check", "mine_checked:Grey", digits, "--count", "5"]) == 0
    out, err = capsys.readouterr()
    assert "checking grey on 5 images of at most 28 x 28 pixels" in err
    assert out.count("\n") == out.count("ok  ") == 21
    assert main(["check", "mine_checked:Centred", digits]) == BackboneError.code
    out, err = capsys.readouterr()
    assert "FAIL  error at 0.05" in out
    assert "checks failed" in err


def test_the_command_says_the_same_in_json(digits, capsys):
    assert main(["check", "mine_checked:Centred", digits, "--json"]) == BackboneError.code
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["backbone"], said["height"], said["images"]) == (False, "grey", 28, 6)
    assert {"name", "ok", "found", "do"} == set(said["checks"][0])
    assert {"sigma", "mse", "gaussian", "nothing", "ok"} == set(said["errors"][0])
    assert main(["check", "mine_checked:Absent", digits, "--json"]) == BackboneError.code
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["checks"], said["code"]) == (False, [], BackboneError.code)


def test_pictures_are_cropped_and_limits_hold(tmp_path, fresh, capsys):
    picture = random_images(fresh, 1, 40, 300)[0].permute(1, 2, 0).numpy()
    (tmp_path / "a.png").write_bytes(images_io.png_bytes(picture))
    assert main(["check", "gaussian-prior", str(tmp_path), "--json"]) in (0, BackboneError.code)
    said = json.loads(capsys.readouterr().out)
    assert (said["height"], said["width"]) == (40, 256)
    assert main(["check", "gaussian-prior", str(tmp_path), "--max-pixels", "100"]) == ImageError.code
    assert main(["check", "gaussian-prior", str(tmp_path), "--crop", "0"]) == SpecError.code
