"""Backbones around another one: nothing that describes the inner backbone, and nothing it does, is dropped on the way."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

from noisebook.backbones import base
from noisebook.backbones.base import Backbone, Description
from noisebook.backbones.grid import Grid
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.backbones.wrappers.hosted import Hosted
from noisebook.backbones.wrappers.latent import Latent
from noisebook.backbones.wrappers.ranged import Ranged
from noisebook.backbones.wrappers.reparameterised import View, ddpm_view, flow_view
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.errors import BackboneError, ImageError

pytestmark = pytest.mark.quick


class Unusual(Backbone):
    """A user's backbone of which no attribute and no answer is the default. It notes down its calls."""

    name, channels, multiple, size = "unusual", 1, 3, (6, 9)
    fingerprint, pure_noise, capturable = "u" * 64, True, False
    condition_grid, unfingerprinted_options = (3, 16, 6), ("guidance", "mood")
    native_size = (12, 18)

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.zeros(1)), []

    def denoise(self, y, sigma, cond=None):
        assert cond is None or cond in ("cond", "guided")
        self.calls.append(("denoise", sigma, cond))
        return y * (0.25 / (0.25 + sigma * sigma)) if cond is None else -y

    def denoise_each(self, y, sigma):
        self.calls.append(("denoise_each", tuple(sigma.tolist())))
        sigma = sigma[:, None, None, None]
        return y * (0.25 / (0.25 + sigma * sigma))

    def accelerate(self, dtype=torch.float32, channels_last=False, compile=False):
        self.calls.append(("accelerate", dtype, channels_last, compile))
        return self

    def round_sigma(self, sigma):
        return round(sigma, 1)

    def own_grid(self):
        return Grid((0.1, 0.2), "trailing", 3)

    def padded(self, height, width):
        if height > 6 or width > 9:
            raise ImageError("too large")
        return 6, 9

    def state_shape(self, height, width):
        return (1, height, width)

    def encode_condition(self, images):
        return torch.full((len(images), 2, 3), 7)

    def condition(self, tokens, height, width):
        self.calls.append(("condition", height, width))
        return "cond"

    def guided(self, cond):
        return "guided"

    def encode(self, images):
        return images + 1

    def decode(self, x0):
        return x0 - 1


class Halved(nn.Module):
    """An autoencoder that averages 2 x 2 pixels of three channels."""

    def encode(self, images):
        return nn.functional.avg_pool2d(images, 2).mean(1, keepdim=True)

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=2.0).expand(-1, 3, -1, -1)


def latent(inner: Backbone) -> Latent:
    return Latent(inner, Halved(), scale=0.5, shift=0.25, factor=2)


@dataclass(frozen=True)
class Case:
    wrap: Callable[[Backbone], Wrapper]
    kind: type[Wrapper]
    changes: dict  # fields of the description that this wrapper says anew, beside the fingerprint
    conditional: bool  # takes an inner backbone that has a condition


CASES = {
    "wrapper": Case(lambda inner: Wrapper(inner, fingerprint="other"), Wrapper, {}, True),
    "latent": Case(latent, Latent, {"channels": 3, "size": (12, 18), "multiple": 6}, True),
    "tiled": Case(Tiled, Tiled, {"size": None, "multiple": 1}, False),
    "DDPM view": Case(ddpm_view, View, {"pure_noise": False}, False),
    "flow view": Case(flow_view, View, {"pure_noise": False}, False),
    "ranged": Case(lambda inner: Ranged(inner, -1, 1), Ranged, {}, True),
    "hosted": Case(Hosted, Hosted, {}, True),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def unusual(case: Case) -> Unusual:
    """Unusual in all that this wrapper takes."""
    inner = Unusual()
    if not case.conditional:
        inner.condition_grid = None
    return inner


def wrappers_below(kind: type) -> set[type]:
    return {kind} | {deep for below in kind.__subclasses__() for deep in wrappers_below(below)}


def test_the_cases_are_all_wrappers_and_unusual_is_unusual():
    assert {kind for kind in wrappers_below(Wrapper) if kind.__module__.startswith("noisebook.")} == {
        case.kind for case in CASES.values()
    }
    for field in fields(Description):
        assert getattr(Unusual, field.name) != getattr(Backbone, field.name), f"let Unusual have another {field.name}"


def test_the_record_and_the_attributes_are_one():
    inner = Unusual()
    assert inner.description == Description("unusual", 1, 3, (6, 9), "u" * 64, True, False, (3, 16, 6), ("guidance", "mood"))
    inner.name = "renamed"
    assert inner.description.name == "renamed"
    with pytest.raises(dataclasses.FrozenInstanceError):
        inner.description.name = "again"  # pyright: ignore
    plain = Backbone()
    plain.description = inner.description
    assert {field.name: getattr(plain, field.name) for field in fields(Description)} == vars(inner.description)


def test_a_wrapper_carries_the_whole_description(case):
    inner = unusual(case)
    wrapper = case.wrap(inner)
    assert wrapper.inner is inner
    for field in fields(Description):
        value = getattr(wrapper, field.name)
        if field.name == "fingerprint" and case.kind is not Hosted:  # on another device it is the same model
            assert value != inner.fingerprint, "another wrapper, or another autoencoder, is another codec"
        else:
            assert value == case.changes.get(field.name, getattr(inner, field.name)), field.name


def test_a_field_that_is_added_tomorrow_is_carried(case, monkeypatch):
    @dataclass(frozen=True)
    class Wider(Description):
        weather: str

    monkeypatch.setattr(base, "Description", Wider)
    monkeypatch.setattr(Backbone, "weather", "unknown", raising=False)
    inner = unusual(case)
    inner.weather = "rain"
    wrapper = case.wrap(inner)
    assert wrapper.weather == "rain"
    assert wrapper.description.weather == "rain"


def test_every_method_and_property_of_a_backbone_is_passed_on():
    own = {"description", "device", "forward", "answers_to"}  # made of what is passed on, or read off all weights
    own |= {"identify_as"}  # of a wrapper that has a fingerprint of its own
    own |= {"factory"}  # which gave inner, not what is around it
    public = {name for name in vars(Backbone) if not name.startswith("_")}
    public -= own | {field.name for field in fields(Description)}
    assert public == {name for name in vars(Wrapper) if not name.startswith("_")}
    inner = Unusual()
    wrapper, x, each = Wrapper(inner), torch.ones(1, 1, 6, 9), torch.tensor([0.5])
    assert wrapper.native_size == (12, 18)
    inner.auto_bfloat16, inner.acceleration = ("mps",), {"dtype": "bfloat16-network", "channels_last": True}
    assert (wrapper.auto_bfloat16, wrapper.accelerated_to) == (("mps",), "bfloat16-network")
    assert wrapper.acceleration == inner.acceleration
    assert wrapper.computes_in == "bfloat16-network"
    assert Wrapper(Unusual().double()).computes_in == "float64"
    inner.identify_as("v" * 64, lambda: "u" * 64)
    assert Wrapper(inner).earlier_fingerprints() == ("u" * 64,)
    assert wrapper.has_denoise_each
    assert not Wrapper(Backbone()).has_denoise_each
    assert not wrapper.on_pixels
    assert Wrapper(Backbone()).on_pixels
    assert not latent(Backbone()).on_pixels
    assert wrapper.round_sigma(0.33) == 0.3
    assert wrapper.own_grid() == Grid((0.1, 0.2), "trailing", 3)
    assert wrapper.padded(1, 2) == (6, 9)
    assert wrapper.state_shape(5, 4) == (1, 5, 4)
    assert wrapper.encode_condition(x).tolist() == [[[7] * 3] * 2]
    assert wrapper.condition(torch.zeros(1, 6), 6, 9) == "cond"
    assert wrapper.guided("cond") == "guided"
    assert torch.equal(wrapper.encode(x), x + 1)
    assert torch.equal(wrapper.decode(x), x - 1)
    assert torch.equal(wrapper.denoise(x, 0.5), x / 2)
    assert torch.equal(wrapper(x, 0.5, "guided"), -x)
    assert torch.equal(wrapper.denoise_each(x, each), x / 2)
    assert wrapper.accelerate("bfloat16", True, compile=True) is wrapper
    assert inner.calls == [
        ("condition", 6, 9),
        ("denoise", 0.5, None),
        ("denoise", 0.5, "guided"),
        ("denoise_each", (0.5,)),
        ("accelerate", "bfloat16", True, True),
    ]


def test_what_a_wrapper_does_not_change_is_the_inner_backbones(case):
    inner = unusual(case)
    wrapper, x = case.wrap(inner), torch.rand(1, 1, 6, 9)
    assert wrapper.accelerate("bfloat16", channels_last=True) is wrapper
    assert inner.calls == [("accelerate", "bfloat16", True, False)]
    assert wrapper.guided("cond") == "guided"
    assert wrapper.encode_condition(x).tolist() == [[[7] * 3] * 2]
    assert wrapper.has_denoise_each
    if case.kind is not View:
        assert wrapper.round_sigma(0.33) == 0.3
        assert wrapper.own_grid() == Grid((0.1, 0.2), "trailing", 3)
    if case.kind is not Latent:
        assert wrapper.native_size == (12, 18)
        assert wrapper.state_shape(6, 9) == (1, 6, 9)
        assert torch.equal(wrapper.encode(x), x + 1)
        assert torch.equal(wrapper.decode(x), x - 1)
        sigma = wrapper.round_sigma(1.0)
        wanted = x * (0.25 / (0.25 + sigma * sigma))
        torch.testing.assert_close(wrapper.denoise(x, sigma), wanted, rtol=1e-5, atol=1e-5)


def test_a_latent_counts_in_pixels():
    inner = Unusual()
    model, images = latent(inner), torch.rand(2, 3, 12, 18)
    assert model.native_size == (24, 36)
    assert model.padded(11, 2) == (12, 18)
    with pytest.raises(ImageError, match="12, 18"):
        model.padded(13, 2)
    inner.size = None
    with pytest.raises(ImageError, match="too large"):  # the inner backbone is asked, whatever its reason
        latent(inner).padded(13, 2)
    assert model.state_shape(12, 18) == (1, 6, 9)
    state = model.encode(images)
    torch.testing.assert_close(state, (Halved().encode(images) - 0.25) * 0.5 + 1)
    torch.testing.assert_close(model.decode(state), Halved().decode(Halved().encode(images)))
    assert model.condition(torch.zeros(1, 6), 12, 18) == "cond"
    assert inner.calls == [("condition", 12, 18)]  # of the images: a condition's tokens are of pixels
    inner.channels = 3
    with pytest.raises(BackboneError, match=r"\[1, 6, 9\].*\[3, 6, 9\]"):
        model.encode(images)


def test_a_tiled_one_asks_for_each_tile_at_its_images_level():
    inner = unusual(CASES["tiled"])
    tiled, y = Tiled(inner), torch.randn(2, 1, 7, 20)
    got = tiled.denoise_each(y, torch.tensor([0.5, 2.0]))
    for image, sigma, x0_hat in zip(y, (0.5, 2.0), got, strict=True):
        torch.testing.assert_close(x0_hat, image * (0.25 / (0.25 + sigma * sigma)))
    assert all(len(set(sigmas[::2])) == len(set(sigmas[1::2])) == 1 for _, sigmas in inner.calls)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.conditional])
def test_a_condition_that_would_be_dropped_is_refused(name):
    with pytest.raises(BackboneError, match=r"'unusual' .*condition"):
        CASES[name].wrap(Unusual())
    wrapper = CASES[name].wrap(unusual(CASES[name]))
    with pytest.raises(BackboneError, match="takes no condition"):
        wrapper.denoise(torch.zeros(1, 1, 6, 9), 1.0, "cond")


def test_weights_that_move_inside_are_other_weights(case):
    """A recorded graph knows addresses: the version is another, whether the wrapper or the inner backbone is moved."""
    inner = unusual(case)
    wrapper = case.wrap(inner)
    seen = [wrapper.version]
    for move in (wrapper.double, inner.float, inner.double):
        move()
        seen.append(wrapper.version)
    assert seen == sorted(set(seen))
    assert wrapper.device == inner.weight.device
    assert {t.dtype for t in wrapper.parameters()} == {torch.float64}


def test_a_wrapper_answers_to_what_it_was_called_before(case):
    """As if the fingerprint of an earlier noisebook were still inner's; unless it has one of its own, which it had then."""
    before, asked = unusual(case), []
    now = unusual(case)
    now.identify_as("v" * 64, lambda: asked.append(1) or "u" * 64)
    old, new = case.wrap(before), case.wrap(now)
    own = case.kind in (Latent, Wrapper)
    assert asked == []
    assert new.answers_to(new.fingerprint)
    assert asked == [], "it is made only where it is needed"
    assert new.answers_to(old.fingerprint)
    assert (new.fingerprint == old.fingerprint) == own
    assert not new.answers_to("w" * 64)
    assert not new.answers_to("u" * 64) or case.kind is Hosted
    assert len(asked) == (not own)
    new.fingerprint = "x" * 64  # of weights that somebody has changed since
    assert new.earlier_fingerprints() == ()
    assert not new.answers_to(old.fingerprint) or own


def test_a_latent_has_an_earlier_fingerprint_of_its_own():
    model = latent(Unusual())
    model.identify_as("y" * 64, lambda: "z" * 64)
    assert model.answers_to("z" * 64)
    assert Hosted(model).answers_to("z" * 64)
    model.fingerprint = "a" * 64
    assert not model.answers_to("z" * 64)
