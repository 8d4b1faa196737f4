"""Curves, the schedules that follow from them, and the promise that a curve's number always means the same codec."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from noisebook import SpecError, backbones
from noisebook.codec.codec import Codec
from noisebook.codec.measure import measure
from noisebook.spec import curve as calibration
from noisebook.spec.curve import Curve

# (backbone, height, width, tokens, steps) -> hash: files carry the numbers alone, so these may never change
RELEASED = {
    ("photo", 512, 768, 6000, 24): "b8686308eb1a7578",
    ("gaussian-prior", 512, 768, 6000, 24): "081a21c10884b96f",
    ("cifar10-edm", 512, 768, 6000, 24): "f90d4885695be200",
    ("cifar10-flow", 512, 768, 6000, 24): "08df520af11eff27",
}
NUMBERS = {1: "photo", 2: "gaussian-prior", 3: "cifar10-edm", 4: "cifar10-flow", 5: "photo-2"}


def white(fresh, count=8, side=24, deviation=0.25):
    """Images of independent pixels, uint8."""
    x = fresh.standard_normal((count, 3, side, side)) * deviation
    return torch.from_numpy(np.clip((x + 1) * 127.5, 0, 255).round().astype("uint8"))


def random_curve(fresh) -> Curve:
    """mse = s sigma^2 / (s + sigma^2) summed over a few random variances: the curve of some Gaussian."""
    variances = 10 ** fresh.uniform(-3, 0, 6)
    sigma = np.geomspace(64, 0.01, 49)
    mse = (variances * sigma[:, None] ** 2 / (variances + sigma[:, None] ** 2)).mean(1)
    return Curve("some", "0" * 64, tuple(sigma.tolist()), tuple(mse.tolist()), float(variances.mean()))


def final(curve, dims, bins, vocab_size=65536) -> float:
    return calibration.levels_of(curve, dims, bins, vocab_size)[-1]


def test_a_measured_curve_is_the_error_that_theory_gives(shrink, fresh):
    images = white(fresh)
    curve = measure(shrink, [images[:3], images[3:]], seed=int(fresh.integers(1000)), nodes=13)
    power = float((images.double() / 127.5 - 1).square().mean())
    assert curve.power == pytest.approx(power, rel=1e-5)
    for sigma, mse in zip(curve.sigma, curve.mse, strict=True):
        keep = 0.25 / (0.25 + sigma * sigma)
        assert mse == pytest.approx((1 - keep) ** 2 * power + keep**2 * sigma**2, rel=0.1)
    assert (curve.backbone, curve.fingerprint, curve.number) == (shrink.name, shrink.fingerprint, 0)
    assert Curve.from_json(curve.to_json()) == curve


def test_between_and_beyond_the_levels_that_were_measured():
    curve = Curve("some", "", (4.0, 2.0, 1.0), (0.9, 0.5, 0.2), 1.0)
    assert [curve.at(v) for v in (4, 2, 1, 3, 100)] == pytest.approx([0.9, 0.5, 0.2, 0.7, 0.9])
    assert curve.at(0.1) == pytest.approx(0.2 * 0.01)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"noisebook_curve": 2}', '{"noisebook_curve": 1, "sigma": [1]}', "\x00"])
def test_what_is_no_curve_is_refused(text):
    with pytest.raises(SpecError):
        Curve.from_json(text)


def test_curves_that_cannot_be_are_refused():
    good = {"backbone": "x", "fingerprint": "", "sigma": (2.0, 1.0), "mse": (0.2, 0.1), "power": 1.0}
    for changes in ({"sigma": (1.0, 2.0)}, {"sigma": (1.0,), "mse": (1.0,)}, {"mse": (0.1, -1.0)}, {"power": math.inf}):
        with pytest.raises(SpecError, match="falling levels"):
            Curve(**{**good, **changes})


@pytest.mark.parametrize("steps", [1, 3, 8, 24, 60])
def test_a_schedule_is_one_that_a_codec_can_walk(steps, fresh):
    for _ in range(10):
        curve, dims = random_curve(fresh), int(fresh.integers(300, 100_000))
        tokens = int(fresh.integers(steps + 1, max(steps + 2, dims // 8)))
        spec = calibration.spec_for(curve, dims, tokens, steps)  # raises where steps do not join
        spent = spec.start_budget + sum(s.budget for s in spec.schedule)
        assert len(spec.schedule) == min(steps, tokens - 1)
        assert spent <= tokens
        least = {1: 0.5, 3: 0.7, 8: 0.85}.get(steps, 0.95)  # sums of few powers of two
        assert spent >= least * tokens - 1 or max(s.budget for s in spec.schedule) * 32 > dims
        for step in spec.schedule:
            assert step.sigma_down == pytest.approx(step.sigma_next**2 / step.sigma, rel=1e-12)
            assert step.budget * 16 <= dims


def test_the_shortest_path_beats_even_tokens_and_even_levels(fresh):
    """In the level that equal tokens reach, by the model itself, but for the path's grid; before bins are rounded."""
    for _ in range(20):
        curve, dims, steps = random_curve(fresh), 3072, int(fresh.integers(3, 30))
        tokens = int(fresh.integers(5 * steps, 500))
        best = calibration.path(curve, dims, tokens, steps, 65536)
        assert len(best) == steps + 1
        assert sum(best) <= tokens + 1
        reached = final(curve, dims, [b * tokens / sum(best) for b in best])
        assert reached <= 1.03 * final(curve, dims, [tokens / (steps + 1)] * (steps + 1))
        growing = np.geomspace(1, 50, steps + 1)
        assert reached <= 1.03 * final(curve, dims, (growing / growing.sum() * tokens).tolist())


def test_more_steps_and_more_tokens_lead_lower(fresh):
    curve = random_curve(fresh)
    ends = [final(curve, 3072, calibration.path(curve, 3072, 400, n, 65536)) for n in (2, 4, 8, 24, 60)]
    one = math.sqrt(calibration.RATIO)  # the path's levels are a grid, and what is short of the next one stays unspent
    assert all(b <= one * a for a, b in zip(ends, ends[1:], strict=False))
    assert min(ends[2:]) < ends[0]
    ends = [final(curve, 3072, calibration.path(curve, 3072, t, 12, 65536)) for t in (20, 80, 300, 1000)]
    assert ends == sorted(ends, reverse=True)


def test_a_codec_ends_where_its_curve_predicts(shrink, fresh):
    """The mean squared error of a decode on images as those of the curve, within 15 %."""
    images = white(fresh, 16, 32, 0.5)
    curve = measure(shrink, [images], nodes=25)
    for tokens in (40, 200):
        spec = calibration.spec_for(curve, 3 * 32 * 32, tokens, 16)
        _, decoded = Codec(spec, shrink, effort=1).reconstruct(images)
        error = float((decoded - (images.float() / 127.5 - 1)).square().mean())
        assert error == pytest.approx(curve.at(spec.schedule[-1].sigma_next), rel=0.15)


def test_too_few_tokens_are_refused(fresh):
    with pytest.raises(SpecError, match="too few"):
        calibration.spec_for(random_curve(fresh), 3072, 1, 8)


def test_levels_are_those_that_a_discrete_model_knows(shrink, fresh):
    spec = calibration.spec_for(random_curve(fresh), 3072, 60, 12)
    assert calibration.with_known_levels(spec, shrink) is spec
    shrink.round_sigma = lambda sigma: math.exp(round(200 * math.log(sigma)) / 200)
    known = calibration.with_known_levels(spec, shrink)
    assert all(shrink.round_sigma(s.sigma_next) == s.sigma_next for s in known.schedule)
    assert [s.budget for s in known.schedule] == [s.budget for s in spec.schedule]
    coarse = sorted([2.0, 1.0, 0.5, spec.sigma_last], reverse=True)  # steps whose levels become one are one
    shrink.round_sigma = lambda sigma: min(coarse, key=lambda level: abs(math.log(level / sigma)))
    for dims in (0, 3072):
        merged = calibration.with_known_levels(spec, shrink, dims)
        levels = [s.sigma for s in merged.schedule] + [merged.sigma_last]
        assert levels == sorted(set(levels), reverse=True)
        assert set(levels) <= set(coarse)
        budgets = [merged.start_budget, *(s.budget for s in merged.schedule)]
        assert all(n & (n - 1) == 0 for n in budgets)
        assert max(budgets) <= (3072 // 16 if dims else max(s.budget for s in spec.schedule))
        assert sum(budgets) >= 40 or not dims
    shrink.round_sigma = lambda sigma: 1e-3 if sigma < 20 else 30.0  # all one: a step between it and the nearest other
    assert calibration.with_known_levels(spec, shrink, 3072).sigma_last == 1e-3
    shrink.round_sigma = lambda sigma: 1.0
    with pytest.raises(SpecError, match="knows too few levels"):
        calibration.with_known_levels(spec, shrink)


# ---- what comes with the package ----------------------------------------------------------------------------------------
def test_shipped_curves_are_of_the_shipped_networks():
    shipped = calibration.shipped_curves()
    assert {curve.number: name for name, curve in shipped.items()} == NUMBERS
    for name, curve in shipped.items():
        backbone = backbones.load(name)
        assert curve.fingerprint == backbone.fingerprint
        assert calibration.by_number(curve.number) == curve
        for size in ((512, 768), (40, 40), (33, 50), (7, 9)):
            assert curve.dims(*size) == math.prod(backbone.state_shape(*backbone.padded(*size))), (name, size)
    assert calibration.by_number(0) is None
    assert calibration.by_number(200) is None


@pytest.mark.parametrize("case", RELEASED, ids=lambda c: c[0])
def test_a_released_number_means_the_same_codec_for_ever(case):
    name, height, width, tokens, steps = case
    curve = calibration.shipped_curves()[name]
    spec = calibration.spec_for(curve, curve.dims(height, width), tokens, steps)
    assert spec.hash.hex() == RELEASED[case]


def test_a_curve_of_a_latent_model_does_not_guess_dimensions(fresh):
    assert replace(random_curve(fresh), channels=0).dims(64, 64) == 0
    assert json.loads(random_curve(fresh).to_json())["noisebook_curve"] == calibration.FORMAT


@pytest.mark.parametrize(("size", "multiple"), [((24, 24), 1), ((24, 32), 1), (None, 8)])
def test_a_curve_knows_the_sizes_of_its_backbone(size, multiple, shrink, fresh):
    """Of one size only, square or not, or of any multiple: `dims` is that of the padded state, or 0 where it cannot say."""
    shrink.size, shrink.multiple = size, multiple
    side = size or (24, 40)
    images = white(fresh, side=max(side))[:, :, : side[0], : side[1]]
    curve = measure(shrink, [images], nodes=5)
    for height, width in ((20, 24), (3, 5), side):
        padded = shrink.padded(height, width)
        assert curve.dims(height, width) == (0 if size == (24, 32) else 3 * padded[0] * padded[1])
