"""Spacing `own`: the levels of a discrete-time model itself, at the timesteps that its own sampler takes."""

import math

import pytest
import torch
from torch import nn

from common import Shrink, random_images
from families_kit import ABARS, LEVELS, Gaussian, ddpm, edm, flow
from noisebook.backbones.families.consistency import Consistency
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.score import ScoreVP
from noisebook.backbones.grid import Grid
from noisebook.backbones.wrappers.hosted import Hosted
from noisebook.backbones.wrappers.reparameterised import ddpm_view, flow_view
from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.spec import schedule
from noisebook.spec.presets import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")
WHOLE = {"spacing": "own", "sigma_max": math.inf, "sigma_min": 1e-9}


def discrete(spacing: str = "linspace", offset: int = 0, abars=ABARS, prediction: str = "epsilon") -> DDPM:
    made = DDPM(nn.Identity(), abars, prediction, spacing=spacing, offset=offset)
    made.name, made.fingerprint = "discrete", "d" * 64
    return made


def levels_of(backbone, **recipe) -> list[float]:
    spec = Recipe(**{**WHOLE, **recipe}).build(backbone)
    return [step.sigma for step in spec.schedule] + [spec.sigma_last]


@pytest.mark.parametrize(
    ("spacing", "offset", "wanted"),
    [
        ("linspace", 0, [9, 7, 4, 2]),  # 9, 6.67, 4.33 and 2
        ("leading", 0, [8, 6, 4, 2]),  # each second of 8, from the lowest
        ("leading", 1, [9, 7, 5, 3]),
        ("leading", 9, [9, 7, 5, 3]),  # an offset leads no further than the highest
        ("trailing", 0, [9, 7, 5, 3]),
    ],
)
def test_between_two_levels_they_are_taken_as_the_sampler_takes_the_whole(spacing, offset, wanted):
    grid = Grid(tuple(float(level) for level in range(1, 13)), spacing, offset)
    assert schedule.own(grid, 9.0, 2.0, 3) == wanted
    assert schedule.own(grid, 9.4, 1.5, 3) == wanted
    assert schedule.own(grid, 9.0, 2.0, 7) == list(range(9, 1, -1))  # all there are, however they are taken
    with pytest.raises(SpecError, match=r"8 levels between 2\.0 and 9\.0, not 9: take fewer steps"):
        schedule.own(grid, 9.0, 2.0, 8)


def test_a_model_of_zero_signal_begins_at_pure_noise():
    roots = [math.sqrt(abar) for abar in ABARS]
    abars = [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]
    model = discrete("trailing", abars=abars, prediction="v_prediction")
    found = levels_of(model, steps=3)
    assert found == [model.levels[t] for t in (999, 749, 499, 249)]
    assert found[0] == math.inf
    assert levels_of(discrete("trailing", abars=abars), steps=1)[0] < math.inf  # an eps-prediction has no such level
    assert levels_of(model, steps=3, sigma_max=50)[0] < 50


def test_wrappers_and_views_have_the_grid_that_they_walk_on(fresh):
    g = Gaussian(fresh)
    inner = discrete("leading", 1)
    assert Hosted(inner).own_grid() == inner.own_grid() == Grid(tuple(inner.levels), "leading", 1)
    assert ddpm_view(edm(g)).own_grid() == ddpm(g, "epsilon").own_grid() == Grid(tuple(LEVELS))
    few = Consistency(nn.Identity(), levels=[2.0, 0.5, 9.0])
    assert few.own_grid() == Grid((0.5, 2.0, 9.0))
    assert schedule.own(few.own_grid(), 9.0, 0.1, 2) == [9.0, 2.0, 0.5]


class Steps(Shrink):
    """A network of one's own that knows 40 levels, and says so by `round_sigma` only."""

    KNOWN = tuple(0.05 * 1.15**i for i in range(40))

    def round_sigma(self, sigma):
        return min(self.KNOWN, key=lambda level: abs(math.log(level) - math.log(min(max(sigma, 1e-3), 1e3))))


def test_a_network_of_ones_own_says_its_levels_by_rounding(fresh):
    """Through a codec: what is encoded on these levels is decoded on them, and the file carries them."""
    model, images = Steps(), random_images(fresh, 2, 16, 24)
    assert model.own_grid() == Grid(Steps.KNOWN)
    spec = Recipe(spacing="own", steps=13, sigma_max=99, sigma_min=0.01, budget=4, vocab_size=256).build(model)
    assert [step.sigma for step in spec.schedule] == list(Steps.KNOWN[39:0:-3])
    assert spec.sigma_last == Steps.KNOWN[0]
    codec = Codec(spec, model)
    tokens, images_of_encoder = codec.reconstruct(images)
    assert torch.equal(Codec(type(spec).from_json(spec.to_json()), model).decode(tokens, (16, 24)), images_of_encoder)


def test_a_model_of_continuous_time_has_no_grid(fresh, shrink):
    g = Gaussian(fresh)
    models = [shrink, edm(g), flow(g, False, 1000.0), flow_view(edm(g)), ScoreVP(nn.Identity()), Consistency(nn.Identity())]
    for model in models:
        assert model.own_grid() is None
    with pytest.raises(SpecError) as caught:
        Recipe(spacing="own").build(shrink)
    assert str(caught.value) == (
        "backbone 'shrink' is of continuous time and has no levels of its own: "
        "take spacing log, karras, ddpm, flow, turbo or diffc"
    )


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid((1.0, 2.0), "by\x1b[2Jheart"), r"timestep_spacing by\\x1b\[2Jheart is not known: take spacing log, "),
        (Grid((1.0, 2.0), "leading", -1), "steps_offset is -1, no number of timesteps: take spacing log, "),
        (Grid((1.0, 2.0), "leading", "one"), "steps_offset is one, no number"),  # pyright: ignore
    ],
)
def test_timesteps_that_are_taken_in_another_way_are_refused_in_one_line(grid, words):
    with pytest.raises(SpecError, match=words) as caught:
        schedule.own(grid, 2.0, 1.0, 1)
    assert "\n" not in str(caught.value)
