"""Every family's adapter against one model known in closed form, images that are Gaussian, and against its own library."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fake_cuda import Recorder
from families_kit import ABARS, LEVELS, SHAPE, TIMES, Gaussian, Net, ddpm, edm, flow, in_range, walk, wide
from noisebook.backbones import Backbone, fingerprint_of
from noisebook.backbones.families.consistency import Consistency
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.families.network import nearest
from noisebook.backbones.families.score import ScoreVE, ScoreVP
from noisebook.backbones.wrappers.ranged import Ranged
from noisebook.backbones.wrappers.reparameterised import ddpm_view, flow_view, unviewed
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError
from noisebook.spec.presets import Recipe

BETA = (0.1, 20.0)  # of the score model, variance preserving


def score_ve(g: Gaussian, unit_range: bool = False) -> ScoreVE:
    def net(x, sigma):
        if unit_range:  # of x = (y + 1) / 2: the gradient of log p is twice that of y's
            return -g.moments(2 * x - 1, torch.ones_like(sigma), 2 * sigma)[1] / wide(sigma)
        return -g.moments(x, torch.ones_like(sigma), sigma)[1] / wide(sigma)

    return ScoreVE(Net(net), unit_range, size=(4, 4))


def score_vp(g: Gaussian) -> ScoreVP:
    def net(x, t):
        b = BETA[0] * t.double() + (BETA[1] - BETA[0]) * t.double() ** 2 / 2
        s, sigma = (-b / 2).exp(), (-torch.expm1(-b)).sqrt()
        return -g.moments(x, s, sigma)[1] / wide(sigma).to(x)

    return ScoreVP(Net(net), *BETA, size=(4, 4))


FAMILIES = {
    "eps": lambda g: ddpm(g, "epsilon"),
    "v": lambda g: ddpm(g, "v_prediction"),
    "x0": lambda g: ddpm(g, "sample"),
    "score VE": score_ve,
    "score VE, images in [0, 1]": lambda g: score_ve(g, True),
    "score VP": score_vp,
    "EDM": edm,
    "flow": lambda g: flow(g, False, 1000.0),
    "flow, noise at 0": lambda g: flow(g, True, 1.0),
    "DDPM view": lambda g: ddpm_view(edm(g)),
    "flow view": lambda g: flow_view(edm(g)),
    "EDM of images in [0, 1]": lambda g: Ranged(edm(in_range(g, 0, 1)), 0, 1),
    "flow of images in [0, 255]": lambda g: Ranged(flow(in_range(g, 0, 255), False, 1000.0), 0, 255),
    "score VP of images in [-.5, .5]": lambda g: Ranged(score_vp(in_range(g, -0.5, 0.5)), -0.5, 0.5),
}


def grid(backbone: Backbone) -> list[float]:
    """Levels of DDPM's grid, which the model itself knows."""
    levels = [backbone.round_sigma(LEVELS[t]) for t in TIMES]
    assert levels == pytest.approx([LEVELS[t] for t in TIMES], rel=1e-12)
    return levels


@pytest.mark.parametrize("p", [0.5, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_is_that_of_the_closed_form(family, p, noise, fresh):
    g = Gaussian(fresh)
    wanted = walk(g, noise[:-1], [LEVELS[t] for t in TIMES], p, LEVELS[TIMES[0]] * noise[-1])
    backbone = FAMILIES[family](g)
    levels = grid(backbone)
    found = walk(backbone, noise[:-1], levels, p, levels[0] * noise[-1])
    assert found.dtype == torch.float64
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_codec_decodes_the_same_image_in_float32(family, fresh):
    """Tokens at random, through `Codec.decode`: float32 all the way, levels of DDPM's grid from 20 to .02."""
    g = Gaussian(fresh)
    backbone = FAMILIES[family](g)
    backbone.name, backbone.fingerprint = g.name, g.fingerprint
    recipe = Recipe(
        steps=12, sigma_max=20, sigma_min=0.02, vocab_size=256, start_budget=1, start_vocab_size=256, spacing="ddpm"
    )
    spec = recipe.build(ddpm(g, "epsilon"))
    spec = type(spec)(**{**vars(spec), "backbone": g.name, "fingerprint": g.fingerprint})
    tokens = torch.from_numpy(fresh.integers(0, 256, (2, 13)))
    wanted, found = (Codec(spec, b).decode(tokens) for b in (g, backbone))
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_one_level_an_image(fresh):
    g = Gaussian(fresh)
    y, levels = torch.from_numpy(fresh.normal(size=(3, *SHAPE))), [0.1, 1.0, 10.0]
    each = edm(g).denoise_each(y, torch.tensor(levels, dtype=torch.float64))
    for i, sigma in enumerate(levels):
        torch.testing.assert_close(each[i : i + 1], edm(g).denoise(y[i : i + 1], sigma), rtol=0, atol=1e-12)


# ---- other ranges -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-0.5, 0.5), (-3, 1)])
def test_a_model_of_another_range_of_few_levels_is_the_closed_form_at_its_own_levels(prediction, low, high, fresh):
    g = Gaussian(fresh)
    model, a = Ranged(ddpm(in_range(g, low, high), prediction), low, high), (high - low) / 2
    for t in TIMES:
        sigma = model.round_sigma(LEVELS[t] / a)
        assert sigma == pytest.approx(LEVELS[t] / a, rel=1e-12)
        assert model.round_sigma(sigma) == sigma  # a schedule of its levels is one that it knows
        grid = model.own_grid()
        assert grid is not None
        assert grid.levels[t] == sigma
        y = torch.from_numpy(fresh.normal(size=(2, *SHAPE))) * (0.5 + sigma)
        wanted = g.denoise(y, sigma)
        assert (model.denoise(y, sigma) - wanted).abs().max() < 1e-9 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-0.3, 0.9)])
def test_every_level_of_continuous_time_is_known_in_another_range(low, high, fresh):
    model = Ranged(edm(in_range(Gaussian(fresh), low, high)), low, high)
    for sigma in fresh.lognormal(0, 2, 200).tolist():
        assert model.round_sigma(sigma) == sigma
    y, levels = torch.from_numpy(fresh.normal(size=(3, *SHAPE))), [0.1, 1.0, 10.0]
    each = model.denoise_each(y, torch.tensor(levels, dtype=torch.float64))
    for i, sigma in enumerate(levels):
        torch.testing.assert_close(each[i : i + 1], model.denoise(y[i : i + 1], sigma), rtol=0, atol=1e-10)


def test_the_score_of_images_in_0_1_is_the_same_by_either_way(fresh):
    g, y = Gaussian(fresh), torch.from_numpy(fresh.normal(size=(2, *SHAPE)))
    inside, around = score_ve(g, True), Ranged(score_ve(in_range(g, 0, 1)), 0, 1)
    for sigma in (0.05, 1.0, 30.0):
        torch.testing.assert_close(inside.denoise(y, sigma), around.denoise(y, sigma), rtol=0, atol=1e-9)


def test_an_autoencoder_of_images_in_0_255_is_given_them(fresh):
    class Codes(Backbone):
        def encode(self, images):
            return images * 3

        def decode(self, x0):
            return x0 / 3

        def denoise(self, y, sigma, cond=None):
            return y / (1 + sigma)

    model, images = Ranged(Codes(), 0, 255), torch.tensor([-1.0, 0, 1]).view(1, 3, 1, 1)
    assert model.encode(images).flatten().tolist() == [0, 382.5, 765]
    torch.testing.assert_close(model.decode(model.encode(images)), images)
    assert not model.on_pixels
    assert torch.equal(model.denoise(images, 1.0), images / 2)  # the state has no range
    assert model.round_sigma(1.5) == 1.5


def test_a_range_has_a_fingerprint_of_the_weights_and_two_ends(fresh):
    g = Gaussian(fresh)
    assert len({g.fingerprint, *(Ranged(g, *ends).fingerprint for ends in ((0, 1), (0, 255), (-0.5, 0.5)))}) == 4
    assert Ranged(g, 0, 1).fingerprint == Ranged(g, 0.0, 1.0).fingerprint
    assert Ranged(edm(g), 0, 1).fingerprint == "", "of no weights there is none"
    for low, high in ((1, 0), (0, 0), (0, math.inf), (math.nan, 1)):
        with pytest.raises(BackboneError, match="from a low to a high one"):
            Ranged(g, low, high)


# ---- pure noise -------------------------------------------------------------------------------------------------------
def zero_snr(prediction: str):
    """DDPM's grid, its s shifted and scaled so that the last is 0 (Lin et al. 2024, algorithm 1)."""
    roots = [math.sqrt(abar) for abar in ABARS]
    scaled = [(root - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for root in roots]
    return lambda g: ddpm(g, prediction, [root**2 for root in scaled])


FLOWS = ("flow", "flow, noise at 0", "flow of images in [0, 255]")
PURE = {"v": zero_snr("v_prediction"), "x0": zero_snr("sample"), **{k: FAMILIES[k] for k in FLOWS}}


@pytest.mark.parametrize("family", PURE)
def test_in_pure_noise_the_prediction_is_the_mean(family, fresh):
    g = Gaussian(fresh)
    backbone = PURE[family](g)
    assert backbone.pure_noise
    assert backbone.round_sigma(math.inf) == math.inf
    eps, seen = torch.from_numpy(fresh.normal(size=(2, *SHAPE))), []
    getattr(backbone, "inner", backbone).net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = backbone.denoise(eps, math.inf)
    assert torch.equal(seen[0], eps)  # the network is given the noise itself
    torch.testing.assert_close(found, g.mean.view(1, *SHAPE).expand_as(eps), rtol=0, atol=1e-12)


def test_a_walk_that_begins_in_pure_noise_is_the_same_in_every_family_that_knows_it(fresh):
    g = Gaussian(fresh)
    grid = zero_snr("v_prediction")(g)
    grid.name, grid.fingerprint = g.name, g.fingerprint
    spec = Recipe(steps=10, sigma_max=math.inf, sigma_min=0.02, vocab_size=256, spacing="flow").build(grid)
    tokens, images = torch.from_numpy(fresh.integers(0, 256, (2, 10))), {}
    for family, make in PURE.items():
        backbone = make(g)
        backbone.name, backbone.fingerprint = g.name, g.fingerprint
        images[family] = Codec(spec, backbone).decode(tokens)
        assert (images[family] - images["v"]).abs().max() < 1e-4 * images["v"].abs().max(), family


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(PURE)))
def test_the_others_do_not_know_it(family, fresh):
    assert not FAMILIES[family](Gaussian(fresh)).pure_noise


def test_eps_says_nothing_in_pure_noise_so_that_level_is_left_out(fresh):
    model = zero_snr("epsilon")(Gaussian(fresh))
    assert not model.pure_noise
    assert len(model.levels) == 999
    assert math.isfinite(model.round_sigma(math.inf))


# ---- grids and refusals -----------------------------------------------------------------------------------------------
def test_nearest_in_log_distance(fresh):
    levels = sorted(fresh.lognormal(size=5).tolist())
    for sigma in [1e-9, 1e9, *levels, *fresh.lognormal(size=100).tolist()]:
        best = min(range(5), key=lambda i: abs(math.log(levels[i] / sigma)))
        assert nearest(levels, sigma) == best
        assert nearest([*levels, math.inf], sigma) == best  # however large, sigma is infinitely far from pure noise
    assert nearest([*levels, math.inf], math.inf) == 5
    assert nearest(levels, math.inf) == 4


def test_score_vp_knows_no_level_beyond_the_end_of_time(fresh):
    backbone = score_vp(Gaussian(fresh))
    assert backbone.time(backbone.sigma_max) == pytest.approx(1, abs=1e-12)
    assert backbone.round_sigma(1e9) == backbone.sigma_max
    for t in (1e-9, 1e-3, 0.5):
        sigma = math.sqrt(math.expm1(BETA[0] * t + (BETA[1] - BETA[0]) * t * t / 2))
        assert backbone.time(sigma) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("abars", [[], [1.0, 0.5], [0.5, 0.6], [0.5, 0.5], [0.5, -0.1], [0.0], [0.9, 0.0, 0.1]])
def test_ddpm_refuses_levels_that_do_not_fall(abars):
    with pytest.raises(BackboneError, match="do not fall"):
        DDPM(nn.Identity(), abars)


def test_ddpm_refuses_other_predictions():
    with pytest.raises(BackboneError, match="flow"):
        DDPM(nn.Identity(), [0.5], "flow")


@pytest.mark.parametrize("view", [ddpm_view, flow_view])
def test_a_view_is_another_codec_of_the_same_network(view, fresh):
    inner = edm(Gaussian(fresh))
    inner.name, inner.fingerprint = "some", fingerprint_of({}, {})
    seen = view(inner)
    assert (seen.name, seen.size, seen.channels, seen.multiple) == ("some", (4, 4), 3, 1)
    assert unviewed(seen) is unviewed(inner) is inner
    others = [ddpm_view(inner), flow_view(inner), view(edm(Gaussian(fresh))), inner]
    assert [other.fingerprint == seen.fingerprint for other in others].count(True) == 1  # its own
    seen.accelerate(torch.bfloat16)
    assert inner.net_input["dtype"] == inner.net.device.dtype == torch.bfloat16
    assert seen(torch.zeros(1, *SHAPE), seen.round_sigma(1.0)).dtype == torch.float32
    with pytest.raises(BackboneError, match="denoise_each"):
        view(score_ve(Gaussian(fresh)))


CAPTURED = {
    "DDPM": lambda net: DDPM(net, ABARS),
    "score VE": lambda net: ScoreVE(net, True),
    "score VP": ScoreVP,
    "EDM": EDM,
    "flow": Flow,
    "consistency": Consistency,
    "DDPM view": lambda net: ddpm_view(EDM(net)),
    "flow view": lambda net: flow_view(EDM(net)),
}


@pytest.mark.parametrize("family", CAPTURED)
def test_nothing_is_copied_from_or_to_the_device(family, fresh):
    """What a CUDA graph refuses, refused on the CPU; a network of one multiplication."""
    backbone, steps = CAPTURED[family](Net(lambda x, t: x * wide(t).to(x))), []
    y = torch.from_numpy(fresh.normal(size=(2, *SHAPE))).float()
    with Recorder(steps), torch.no_grad():
        found = backbone.denoise(y, backbone.round_sigma(1.0))
    assert len(steps) > 2
    assert torch.equal(found, backbone.denoise(y, backbone.round_sigma(1.0)))


# ---- consistency ------------------------------------------------------------------------------------------------------
def consistency(g: Gaussian, sigma_data=0.7, sigma_min=0.01, levels=None) -> Consistency:
    def net(x, t):
        sigma = float(torch.exp(t[0] / 250))
        y = x * math.hypot(sigma, sigma_data)
        c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
        c_out = sigma_data * (sigma - sigma_min) / math.hypot(sigma, sigma_data)
        return (g.end_point(y, sigma, sigma_min) - c_skip * y) / (c_out or 1)

    return Consistency(Net(net), sigma_data, sigma_min, levels=levels, size=(4, 4))


def test_a_consistency_model_is_the_end_point_of_the_closed_form_ode(fresh):
    g = Gaussian(fresh)
    backbone = consistency(g)
    for sigma in (0.02, 0.3, 5.0, 80.0):
        y = g.mean.view(1, *SHAPE) + math.hypot(sigma, 0.5) * torch.from_numpy(fresh.normal(size=(2, *SHAPE)))
        end = backbone.denoise(y, sigma)
        torch.testing.assert_close(end, g.end_point(y, sigma, 0.01), rtol=0, atol=1e-10)
        steps = [sigma * (0.01 / sigma) ** (i / 400) for i in range(401)]
        for a, b in zip(steps, steps[1:], strict=False):  # dy / dlam = (y - D(y, sigma)) / sigma, by the midpoint rule
            middle = math.sqrt(a * b)
            half = y + (middle - a) / a * (y - g.denoise(y, a))
            y = y + (b - a) / middle * (half - g.denoise(half, middle))
        torch.testing.assert_close(end, y, rtol=0, atol=1e-3)


def test_a_consistency_model_walks_like_the_closed_form(noise, fresh):
    g = Gaussian(fresh)
    ends = SimpleNamespace(denoise=lambda y, sigma: g.end_point(y, sigma, 0.01), decode=g.decode)
    levels = [LEVELS[t] for t in TIMES]
    wanted, found = (walk(b, noise[:-1], levels, 0.5, levels[0] * noise[-1]) for b in (ends, consistency(g)))
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_a_consistency_model_leaves_its_lowest_level_as_it_is_and_snaps_to_levels(fresh):
    g = Gaussian(fresh)
    y = torch.from_numpy(fresh.normal(size=(2, *SHAPE)))
    for sigma in (0.01, 0.001):
        assert torch.equal(consistency(g).denoise(y, sigma), y)
        assert consistency(g).round_sigma(sigma) == 0.01
    backbone = consistency(g, levels=[2.0, 0.5])
    assert [backbone.round_sigma(sigma) for sigma in (0.1, 0.9, 1.1, 9.0)] == [0.5, 0.5, 2.0, 2.0]
    assert torch.equal(backbone.denoise(y, 1.1), consistency(g).denoise(y, 2.0))


def test_a_network_that_fails_is_named():
    class Fails(torch.nn.Module):
        def forward(self, x, t):
            raise RuntimeError("Sizes of tensors must match")

    backbone = Flow(Fails())
    with pytest.raises(BackboneError, match=r"the network of 'unnamed' fails on \[1, 3, 4, 4\]: RuntimeError: Sizes"):
        backbone.denoise(torch.zeros(1, 3, 4, 4), 1.0)
