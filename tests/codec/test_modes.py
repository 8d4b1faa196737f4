"""Modes: tokens that no image chose decode as any others; guidance, restoration and editing do what they are for."""

import math
import re

import numpy as np
import pytest
import torch

import noisebook
from common import ROOT, Shrink, random_images
from noisebook import BackboneError, CodecMismatchError, CodecSpec, ImageError, SpecError, backbones
from noisebook.backbones import fingerprint_of
from noisebook.backbones.wrappers.latent import Latent
from noisebook.codec import modes
from noisebook.codec.codec import Codec
from noisebook.format import container
from noisebook.spec.schedule import falling, log_uniform
from noisebook.spec.step import StepIndex

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")

RULES = {
    "bins": {"budget": 8, "start_budget": 2},
    "bins 2-D": {"budget": 4, "rows": 2, "columns": 3},
    "independent": {"budget": 4, "codebook": "independent", "vocab_size": 66},
    "top": {"rule": "top", "budget": 21},
    "top 2-D": {"rule": "top", "budget": 5, "rows": 2, "columns": 3, "start_budget": 2},
    "pursuit": {"rule": "pursuit", "budget": 3, "coefficient_bits": 2, "vocab_size": 64, "rows": 2},
    "poisson": {"rule": "poisson", "budget": [1, 7, 9, 20, 33, 50], "start_budget": 2},
    "no tokens": {"p": 1.0, "budget": 0},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: two threads are no faster, and much slower where other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tinted(Shrink):
    """White Gaussian images of standard deviation .5 around a mean colour, as a condition asks for them."""

    def __init__(self, *mean: float, multiple: int = 1, channels: int = 3):
        super().__init__()
        self.fingerprint = fingerprint_of({"mean": mean}, {})
        self.multiple, self.channels = multiple, channels
        self.mean = torch.tensor(mean).view(1, len(mean), 1, 1)

    def denoise(self, y, sigma, cond=None):
        return self.mean + super().denoise(y - self.mean, sigma)


def build(backbone, budget=1, steps=6, p=0.5, **changes) -> Codec:
    changes = {"vocab_size": 256, "start_vocab_size": 64, **changes}
    schedule = falling(log_uniform(3, 0.2, steps), p, budget)
    return Codec(CodecSpec(backbone.name, backbone.fingerprint, schedule, **changes), backbone)


def error(operator, images, observed) -> float:
    return (operator(images) - observed).square().mean().item()


# ---- random generation -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", RULES)
def test_generated_tokens_are_valid_and_decode_bit_for_bit(case, shrink, fresh):
    codec, seed = build(shrink, **RULES[case]), int(fresh.integers(2**31))
    tokens, images = modes.generate(codec, 3, (12, 18), seed)
    layout = codec.layout_for(12, 18)
    assert tokens.shape == (3, len(layout))
    assert tokens.dtype == torch.int64
    assert ((tokens >= 0) & (tokens < layout.vocab_size)).all()
    assert torch.equal(images, codec.decode(tokens, (12, 18)))
    assert torch.equal(tokens, modes.generate(codec, 3, (12, 18), seed)[0])
    runs = codec.stream(12, 18).runs
    for row in tokens.numpy():  # a file takes them: sets of rule `top` are distinct and ascending
        assert np.array_equal(container.unpack(container.pack(row, runs), runs), row)
    if len(layout):
        assert not torch.equal(tokens, modes.generate(codec, 3, (12, 18), seed + 1)[0])
        assert not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("rule", ["bins", "top"])
def test_draws_are_uniform(rule, shrink):
    codec = build(shrink, budget=4, vocab_size=16, rule=rule, codebook="independent")
    tokens, _ = modes.generate(codec, 400, (8, 8), seed=7)
    counts = torch.bincount(tokens.flatten(), minlength=16).double()
    wanted = tokens.numel() / 16
    assert ((counts - wanted).square() / wanted).sum() < 45  # chi-squared of 15 degrees: 1e-4 of all seeds are above


# ---- guidance ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", [c for c in RULES if c != "no tokens"])
def test_guidance_leads_to_the_condition_and_away_from_the_other(case, fresh):
    warm, cold, seed = Tinted(0.3, 0.0, -0.3), Tinted(0.0, 0.0, 0.0), int(fresh.integers(2**31))
    codec = build(warm, **RULES[case])
    plain, guided = (modes.guide(codec, cold, 8, (12, 18), n, seed) for n in (1, 16))
    for found, one_by_one in zip(plain, modes.generate(codec, 8, (12, 18), seed), strict=True):
        assert torch.equal(found, one_by_one)
    tint = [(x[1].mean((0, 2, 3)) * torch.tensor([1.0, 0, -1])).sum().item() for x in (plain, guided)]
    assert tint[1] > tint[0] + 0.01, tint
    assert torch.equal(guided[1], codec.decode(guided[0], (12, 18)))
    assert not codec.backbone._forward_pre_hooks


def test_guidance_takes_the_draw_along_the_difference_of_the_noise_predictions(fresh):
    """One step by hand: argmax <z, eps_uncond - eps_cond>, each view for itself, in float64."""
    warm, cold = Tinted(0.4, -0.1, 0.2), Shrink()
    codec, size = build(warm, budget=2, rows=2, steps=1, start_budget=1), (8, 8)
    tokens, _ = modes.guide(codec, cold, 2, size, candidates=3, seed=5)
    plan, generator = codec.stream(*size), torch.Generator().manual_seed(5)
    start, step = plan.segments
    y = torch.randint(64, (2, start.count), generator=generator)
    assert torch.equal(tokens[:, : start.count], y)
    y = plan.join(3 * codec.start_rule.noise(y, (plan.blocks, plan.dims), 1, StepIndex.START)).double()
    eps = [(y - net(y, 3.0)) / 3.0 for net in (cold, warm)]
    towards = plan.views(eps[0] - eps[1])
    draws = torch.stack([torch.randint(256, (2, step.count), generator=generator) for _ in range(3)])
    z = torch.stack([codec.rule.noise(t, (plan.blocks, plan.dims), 2, 0).double() for t in draws])
    best = (z * towards).sum(-1).argmax(0)  # [B, U]
    wanted = draws.unflatten(2, (2, 2)).gather(0, best[None, :, :, None].expand(1, 2, 2, 2))[0].flatten(1)
    assert torch.equal(tokens[:, start.count :], wanted)


def test_guidance_refuses(shrink):
    codec = build(shrink)
    with pytest.raises(SpecError, match="candidate"):
        modes.guide(codec, Tinted(0.1, 0, 0), 1, (8, 8), candidates=0)
    coarse = Tinted(0.1, 0, 0)
    coarse.round_sigma = lambda sigma: round(sigma, 1)
    fixed = Tinted(0.1, 0, 0)
    fixed.size = (16, 16)
    for other in (Tinted(0.1, channels=1), Tinted(0, 0, 0, multiple=3), coarse, fixed):
        with pytest.raises(BackboneError, match="two conditions of one model"):
            modes.guide(codec, other, 1, (8, 8))


# ---- restoration -------------------------------------------------------------------------------------------------------
OPERATORS = {
    "downsample": modes.downsample(2),
    "grey": modes.grey(),
    "blur": modes.blur(0.8),
    "mask": lambda images: images[..., 2:9],
}
SINGLE = {
    "bins": {},
    "codebook start": {"start_budget": 1},
    "independent": {"codebook": "independent", "vocab_size": 130},
    "top": {"rule": "top"},
    "pursuit": {"rule": "pursuit"},
    "poisson": {"rule": "poisson", "budget": 5},
}


@pytest.mark.parametrize(("operator", "case"), [*((a, "bins") for a in OPERATORS), *(("grey", case) for case in SINGLE)])
def test_restoring_explains_what_was_observed(operator, case, fresh):
    backbone, a, size = Tinted(0, 0, 0, multiple=8), OPERATORS[operator], (12, 14)  # padded to 16 x 16
    codec = build(backbone, **{"steps": 24, "budget": 1, **SINGLE[case]})
    observed = a(random_images(fresh, 2, *size).float() * (2 / 255) - 1)
    tokens, images = modes.restore(codec, observed, a, size)
    assert torch.equal(images, codec.decode(tokens, size))
    assert images.shape == (2, 3, *size)
    unguided = modes.generate(codec, 2, size)[1]
    assert error(a, images, observed) < 0.9 * error(a, unguided, observed)
    assert error(a, images, observed) < error(a, images.flip(0), observed)


@pytest.mark.parametrize("case", ["bins", "codebook start", "poisson"])
def test_restoring_takes_the_minimum_of_the_papers_formula(case, monkeypatch, fresh):
    """|y - A(x0_hat + sigma z_k)|^2 of every k written out in float64, sigma as DDPM has it."""
    monkeypatch.setattr(modes, "CHUNK", 3 * 8 * 8 * 7)  # codewords come in groups
    codec, a, size = build(Tinted(0.1, 0, 0), **SINGLE[case]), modes.downsample(2), (8, 8)
    observed = a(random_images(fresh, 2, *size).float() * (2 / 255) - 1)
    tokens, _ = modes.restore(codec, observed, a, size)
    plan = codec.stream(*size)

    def choose(which, x0_hat):
        every = torch.arange(which.runs[0].vocab_size)[:, None]
        rule, sigma = codec.start_rule, math.sqrt(1 - 1 / (1 + 3**2))  # of the first x_t
        if which.step_index != StepIndex.START:
            step, rule = codec.spec.schedule[which.step_index], codec.rule
            now, then = (1 / (1 + sigma**2) for sigma in (step.sigma, step.sigma_next))  # alpha-bar
            sigma = math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        z = sigma * rule.noise(every, (1, plan.dims), which.budget, which.step_index).double()
        predicted = a(plan.join((x0_hat.double()[:, None] + z).flatten(0, 1))).unflatten(0, (2, -1))
        cost = (observed.double()[:, None] - predicted).square().flatten(2).sum(2)
        chosen = tokens[:, which.offset, None]
        assert (cost.gather(1, chosen) <= cost.min(1, keepdim=True)[0] + 1e-3).all()
        return chosen

    codec.walk(plan, 2, choose)


def test_restoring_refuses(shrink):
    observed, a = torch.zeros(1, 1, 8, 8), modes.grey()
    for changes in ({"budget": 2}, {"rows": 2}, {"vocab_size": 8192}, {"start_budget": 1, "start_vocab_size": 65536}):
        with pytest.raises(SpecError, match="one token"):
            modes.restore(build(shrink, **changes), observed, a, (8, 8))
    for bad in (observed[..., 1:], observed.byte(), observed[:0], observed[0], observed * math.nan):
        with pytest.raises(ImageError, match="observe"):
            modes.restore(build(shrink), bad, a, (8, 8))

    class Same(torch.nn.Module):
        encode = decode = staticmethod(torch.nn.Identity())

    latent = Latent(Shrink(), Same(), factor=1)
    latent.fingerprint = fingerprint_of({"kind": "same"}, {})
    with pytest.raises(SpecError, match="latent"):
        modes.restore(build(latent), observed, a, (8, 8))


@pytest.mark.parametrize("a", [*OPERATORS.values(), modes.blur(torch.rand(3, 5))])
def test_operators_are_linear(a, fresh):
    x, y = (torch.from_numpy(fresh.standard_normal((2, 3, 12, 16))) for _ in range(2))
    assert torch.allclose(a(0.7 * x - 1.3 * y), 0.7 * a(x) - 1.3 * a(y), atol=1e-12)


def test_operators_have_the_values_they_should(fresh):
    x = torch.from_numpy(fresh.standard_normal((2, 3, 6, 8)))
    assert torch.allclose(modes.downsample(2)(x)[:, :, 1, 3], x[:, :, 2:4, 6:8].mean((2, 3)))
    grey = modes.grey()(x)
    assert grey.shape == (2, 1, 6, 8)
    assert torch.allclose(grey[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    kernel = torch.tensor([[0.0, 0, 0], [0, 0.25, 0.75], [0, 0, 0]])
    out = modes.blur(kernel)(x)
    assert torch.allclose(out[..., :-1], 0.25 * x[..., :-1] + 0.75 * x[..., 1:])
    assert torch.allclose(out[..., -1], 0.25 * x[..., -1] + 0.75 * x[..., -2])  # reflected
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    spread, i = modes.blur(1.5)(point)[0, 0], torch.arange(21.0) - 10
    assert spread.sum().item() == pytest.approx(1, abs=1e-6)
    assert (spread.sum(0) * i**2).sum().item() == pytest.approx(1.5**2, rel=0.03)  # cut at three deviations
    assert torch.allclose(spread, spread.T)


def test_operators_refuse():
    x = torch.zeros(1, 3, 9, 9)
    for make in (lambda: modes.downsample(0), lambda: modes.blur(0.0), lambda: modes.blur(torch.ones(2, 3))):
        with pytest.raises(SpecError):
            make()
    for a, images in ((modes.downsample(2), x), (modes.grey(), x[:, :1]), (modes.blur(3.0), x)):
        with pytest.raises(ImageError):
            a(images)


def test_super_resolution_of_real_images(data):
    """CIFAR-10 test images, halved: what is restored explains the small image and resembles the large one, as pictures that
    the same codec draws do not. (No test for the small image's own pixels, which explain it exactly.)"""
    with np.load(data / "cifar10_test5k.npz") as archive:
        images = torch.from_numpy(archive["images"][:2]).permute(0, 3, 1, 2) * (2 / 255) - 1
    changes = {
        "steps": 40,
        "budget": 1,
        "budget_last": 1,
        "scale_pixels": 0,
        "start_budget": 0,
        "vocab_size": 512,
        "sigma_min": 0.1,
    }
    codec, a = noisebook.load("photo", backbone="cifar10-edm", **changes), modes.downsample(2)
    tokens, restored = modes.restore(codec, a(images), a, (32, 32))
    assert torch.equal(restored, codec.decode(tokens, (32, 32)))
    drawn = modes.generate(codec, 2, (32, 32))[1]
    assert error(a, restored, a(images)) < 0.1 * error(a, drawn, a(images))
    assert (restored - images).square().mean() < 0.25 * (drawn - images).square().mean()


# ---- editing -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", RULES)
def test_editing_replays_tokens_under_another_condition(case, fresh):
    plain, images = build(Tinted(0, 0, 0), **RULES[case]), random_images(fresh, 2, 12, 18)
    same = modes.edit(plain, build(Tinted(0, 0, 0), **RULES[case]), images)
    assert torch.equal(same, plain.reconstruct(images)[1])
    warm = modes.edit(plain, build(Tinted(0.5, 0, -0.5), **RULES[case]), images)
    change = (warm - same).mean((0, 2, 3))
    assert change[0] > 0.05
    assert change[2] < -0.05
    assert abs(change[1]) < 1e-5


def test_editing_refuses(shrink, fresh):
    codec, images = build(shrink), random_images(fresh, 1, 8, 8)
    for changes in ({"steps": 5}, {"seed": 1}, {"vocab_size": 128}, {"budget": 2}, {"rule": "top"}, {"start_budget": 1}):
        with pytest.raises(CodecMismatchError, match="two codecs of the same schedule"):
            modes.edit(codec, build(Tinted(0.1, 0, 0), **changes), images)
    with pytest.raises(CodecMismatchError, match="other states"):
        modes.edit(codec, build(Tinted(0.1, 0, 0, multiple=16)), images)
    with pytest.raises(ImageError):
        modes.edit(codec, build(Tinted(0.1, 0, 0)), images[0])


@pytest.mark.parametrize("batch", [0, -1])
def test_an_empty_batch_is_refused(batch, shrink):
    for call in (lambda c: modes.generate(c, batch, (8, 8)), lambda c: modes.guide(c, Tinted(0, 0, 0), batch, (8, 8))):
        with pytest.raises(SpecError, match="batch"):
            call(build(shrink))


def test_the_examples_of_the_page_run(monkeypatch):
    """With fewer steps, and with a mean colour where the page has a class."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/modes.md").read_text(), re.DOTALL))
    load, scope = backbones.load, {}

    def tinted(name, *given, label=0, accelerated=None):
        return load(name, *given) if name != "MODEL" else Tinted(label / 1000, 0, 0)

    monkeypatch.setattr(backbones, "load", tinted)
    exec(code.replace('"steps": 100', '"steps": 4').replace("(256, 256)", "(32, 32)"), scope)
    assert scope["large"].shape == scope["filled"].shape == (8, 3, 32, 32)
    assert scope["edited"].shape == (4, 3, 32, 32)
