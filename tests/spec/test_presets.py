"""The presets: what they promise in bits and quality, on real photographs, with the shipped weights."""

import dataclasses

import numpy as np
import pytest
import torch

import noisebook
from noisebook import SpecError, backbones
from noisebook.format.container import OVERHEAD, Container
from noisebook.images import io as images
from noisebook.images import metrics
from noisebook.images.files import decode_picture, encode_and_show, encode_picture
from noisebook.spec import curve as calibration
from noisebook.spec import presets

RATES = {"photo-low": 0.1, "photo": 0.25, "photo-high": 0.5}
HASHES = {
    1: "6a5fc9feb432628e",
    2: "0470cfb85c27c4ab",
    3: "47a197327ad5aba6",
    4: "dcc752e36290b3a6",
    5: "137752c0205a2499",
    6: "f52e24d21b25ba7d",
    7: "c943fd50e5a37c15",
    8: "ffa759d3b2ac4848",
    9: "95a56a202baa2cd7",
}


def test_every_preset_is_its_recipe_on_the_shipped_backbone():
    entries = presets.presets()
    assert set(RATES) <= set(entries)
    assert {p.number: p.spec.hash.hex() for p in entries.values()} == HASHES, "files carry these: add numbers, change none"
    assert len({p.number for p in entries.values()}) == len(entries)
    for preset in entries.values():
        assert 0 < preset.number < 256
        built = preset.recipe.build(backbones.load(preset.spec.backbone))
        assert built.fingerprint == preset.spec.fingerprint, "the weights changed: run tools/make_presets.py"
        for a, b in zip(built.schedule, preset.spec.schedule, strict=True):  # another libm may round otherwise
            assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), rel=1e-12)
        assert dataclasses.replace(built, schedule=preset.spec.schedule) == preset.spec
        assert presets.by_hash(preset.spec.hash) == preset


@pytest.mark.parametrize("name", RATES)
def test_files_have_the_rate_that_the_preset_names(name):
    """Of the whole file, at any size and orientation: within 8 %, and within 3 % at Kodak's size."""
    spec = presets.get(name).spec
    for height, width in [(512, 768), (768, 512), (300, 451), (400, 600), (512, 512), (1080, 1920), (1333, 1000)]:
        bits = 8 * OVERHEAD + sum(run.count * (run.vocab_size.bit_length() - 1) for _, run in spec.runs_for(height, width))
        tolerance = 0.03 if height * width == 512 * 768 else 0.08
        assert bits / (height * width) == pytest.approx(RATES[name], rel=tolerance), (height, width)


def test_more_bits_give_better_photographs():
    """Real photographs through real files; PSNR rises with the rate on each, and the default is above 20 dB."""
    for sample, (top, left) in {"astronaut": (0, 100), "coffee": (80, 100)}.items():
        pixels = images.sample(sample)[top : top + 200, left : left + 280]
        found = []
        for name in RATES:
            codec = noisebook.load(name)
            data, shown = encode_and_show(codec, pixels)
            assert len(data) * 8 / (200 * 280) == pytest.approx(RATES[name], rel=0.1)
            if (sample, name) == ("coffee", "photo"):
                assert (decode_picture(codec, Container.from_bytes(data)) == shown).all()
            found.append(metrics.psnr(pixels, shown))
        assert found[0] + 0.5 < found[1] < found[2] - 0.5, (sample, found)
        assert found[1] > 20


def test_presets_are_calibrated_until_levels_or_bins_are_asked_for(monkeypatch):
    backbone, recipe = backbones.load("gaussian-prior"), presets.get("photo").recipe

    def levels(**changes) -> list[float]:
        spec = presets.changed(recipe, **changes).build(backbone)
        return [spec.schedule[0].sigma, spec.schedule[-1].sigma_next, spec.start_budget]

    curve = calibration.shipped_curves()["gaussian-prior"]
    start, steps = calibration.schedule_for(curve, 3 * 512 * 768, recipe.tokens, 7, 65536)
    assert levels(steps=7) == [steps[0].sigma, steps[-1].sigma_next, start]
    assert levels(steps=7, seed=5, solver="heun", codebook="independent") == levels(steps=7)
    assert presets.changed(recipe, solver="heun", solver_steps=3).build(backbone).solver_levels[-1] == 0
    assert levels(tokens=900)[1] > levels()[1] > levels(tokens=20_000)[1]
    assert levels(budget=9)[:2] == levels(tokens=0)[:2] == [recipe.sigma_max, recipe.sigma_min]
    assert levels(sigma_max=5, sigma_min=0.5) == [5, 0.5, recipe.start_budget]
    assert levels(tokens=0, budget=9, sigma_max=5) == levels(budget=9, sigma_max=5)  # said twice is not wrong
    for wrong in ({"tokens": 900, "sigma_max": 5}, {"tokens": -1}, {"tokens": 5, "scale_pixels": 0}):
        with pytest.raises(SpecError):
            presets.changed(recipe, **wrong).build(backbone)
    monkeypatch.setattr(calibration, "shipped_curves", dict)  # a backbone without a curve
    assert levels() == levels(tokens=0) == [recipe.sigma_max, recipe.sigma_min, recipe.start_budget]


@pytest.mark.parametrize("backbone", ["photo-2", "cifar10-edm"])
@pytest.mark.parametrize(("asked", "spent"), [(64, 64), (9, 8), (0.3, 1)])
def test_a_budget_by_itself_is_that_of_every_step_at_every_size(backbone, asked, spent):
    """Nothing of the preset's last budget, 1641 tokens at 512 x 768, is left."""
    codec = noisebook.load("photo", backbone=backbone, budget=asked)
    assert {step.budget for step in codec.spec.schedule} == {spent}
    for size in ((32, 32), (50, 80)):
        assert len(codec.layout_for(*size)) == 12 * spent + 1
    assert codec.spec == noisebook.load("photo", backbone=backbone, budget=spent, budget_last=spent, scale_pixels=0).spec


def test_budgets_that_come_with_others_are_what_they_were():
    recipe = presets.get("photo").recipe

    def budgets(**changes) -> tuple:
        made = presets.changed(recipe, **changes)
        return made.budget, made.budget_last, made.scale_pixels

    assert budgets(budget=43, budget_last=516) == (43, 516, recipe.scale_pixels)
    assert budgets(budget_last=516) == (recipe.budget, 516, recipe.scale_pixels)
    assert budgets(sigma_max=5.0) == (recipe.budget, recipe.budget_last, recipe.scale_pixels)
    assert budgets(budget=43, scale_pixels=1024) == (43, None, 1024)
    assert budgets(budget=1000, rule="poisson") == (1000, None, 0)
    for bad in (0, -1, float("nan")):
        with pytest.raises(SpecError, match="a budget must be above 0"):
            noisebook.load("photo", backbone="gaussian-prior", budget=bad)


def test_tokens_are_those_that_were_asked_for():
    """A backbone without a curve refuses them, as it does a rate; 0 is what the other options alone are."""
    for name in ("cifar10-ddpm", "cifar10-consistency"):  # which have none
        with pytest.raises(SpecError, match=f"'{name}' has no curve: run `noisebook calibrate {name} .*--bpp in place"):
            noisebook.load("photo", backbone=name, tokens=40)
        plain = noisebook.load("photo", backbone=name, steps=4).spec  # those of the preset's own recipe are passed over
        assert plain == noisebook.load("photo", backbone=name, steps=4, tokens=0).spec
    for more in ({"budget": 4}, {"sigma_max": 20.0}, {"spacing": "karras"}, {"budget": 4, "backbone": "gaussian-prior"}):
        assert noisebook.load("photo", tokens=0, **more).spec == noisebook.load("photo", **more).spec
    for more in ({}, {"budget": 4}, {"backbone": "gaussian-prior"}):
        with pytest.raises(SpecError, match="tokens must be 0 or above, not -3"):
            noisebook.load("photo", tokens=-3, **more)


def test_load_takes_presets_specifications_and_changes():
    codec = noisebook.load("photo")
    assert codec.spec == presets.get("photo").spec
    assert noisebook.load(codec.spec).spec == codec.spec
    changed = noisebook.load("photo", backbone="gaussian-prior", steps=3, seed=9)
    assert (len(changed.spec.schedule), changed.spec.seed, changed.spec.backbone) == (3, 9, "gaussian-prior")
    assert codec.default_size == (512, 768)
    assert len(codec.layout) == codec.stream(512, 768).length > 6000
    small = codec.encode(torch.zeros(1, 3, 64, 80, dtype=torch.uint8))
    assert small.shape == (1, len(codec.layout_for(64, 80)))
    for call in (
        lambda: noisebook.load("best"),
        lambda: noisebook.load("photo", quality=3),
        lambda: noisebook.load(codec.spec, seed=3),
    ):
        with pytest.raises(SpecError):
            call()
    with pytest.raises(noisebook.CodecMismatchError, match="gaussian-prior"):
        noisebook.load(codec.spec, backbone="gaussian-prior")
    with pytest.raises(noisebook.BackboneError):
        noisebook.load("photo", backbone="nothing")


@pytest.mark.slow
def test_kodak_at_native_size(data):
    """Landscape and portrait in one run: the default preset is above 20 dB and keeps its rate."""
    codec = noisebook.load("photo")
    for name in ("kodim03.png", "kodim04.png"):
        pixels = images.read_image(data / "kodak" / name)
        file = encode_picture(codec, pixels)
        decoded = decode_picture(codec, Container.from_bytes(file))
        assert decoded.shape == pixels.shape
        assert 8 * len(file) / np.prod(pixels.shape[:2]) == pytest.approx(0.25, rel=0.02)
        assert (metrics.psnr(pixels, decoded) or 99) > 24
