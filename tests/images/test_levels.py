"""Levels for each picture: what a file names, what an encoder finds, and what it says that this took."""

import json
import math
import warnings
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import noisebook
from common import random_images
from noisebook import SpecError, backbones
from noisebook.cli.main import main
from noisebook.codec import stream
from noisebook.codec.codec import Codec
from noisebook.format.container import Container
from noisebook.format.derived import SCALINGS, UNSCALED
from noisebook.images import files, levels
from noisebook.images.io import png_bytes
from noisebook.images.metrics import psnr
from noisebook.images.preset_levels import PresetLevels
from noisebook.images.targets import Aim, Target, curve_of
from noisebook.spec import curve as calibration
from noisebook.spec import presets

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


@pytest.fixture(scope="module")
def prior():
    return backbones.load("gaussian-prior")


@pytest.fixture
def smooth() -> np.ndarray:
    """A picture far easier than those that a curve was measured on: uint8 [48, 64, 3]."""
    y, x = np.mgrid[:48, :64] / 64
    waves = [120 + 60 * np.sin(3 * x + p) + 40 * np.cos(4 * y - p) for p in (0, 1, 2)]
    return np.stack(waves, -1).round().astype(np.uint8)


def shown(data: bytes, codec: Codec) -> np.ndarray:
    return files.decode_picture(codec, Container.from_bytes(data))


# ---- scaled curves ------------------------------------------------------------------------------------------------------
@pytest.mark.quick
def test_the_scalings_are_geometric_and_one_is_among_them():
    assert len(calibration.SCALES) == SCALINGS
    assert calibration.SCALES[UNSCALED] == 1
    for a, b in pairwise(calibration.SCALES):
        assert b / a == pytest.approx(10 ** (1 / 15), rel=0.01)
    curve = calibration.shipped_curves()["photo"]
    assert curve.scaled(UNSCALED) is curve
    scaled = curve.scaled(3)
    assert scaled.mse == tuple(m * calibration.SCALES[3] for m in curve.mse)
    assert replace(scaled, mse=curve.mse) == curve
    for scaling in (-1, SCALINGS):
        with pytest.raises(SpecError, match="from 0 to 15"):
            curve.scaled(scaling)


@pytest.mark.quick
def test_a_scaled_curve_spends_the_same_tokens_at_other_levels():
    curve = calibration.shipped_curves()["photo"]
    dims, ends = curve.dims(256, 256), []
    for scaling in range(SCALINGS):
        spec = calibration.spec_for(curve.scaled(scaling), dims, 1000, 12)
        assert spec.start_budget + sum(s.budget for s in spec.schedule) == pytest.approx(1000, abs=32)
        ends.append(spec.sigma_last)
    assert all(a < b for a, b in pairwise(ends)), "an easier picture comes to lower levels"


# ---- the search ---------------------------------------------------------------------------------------------------------
def fake(errors: dict[int, float], monkeypatch, ratio: float = 1.0):
    """`best_levels` on pictures whose error at each scaling is given; those that are not there cannot be had."""
    curve = calibration.shipped_curves()["photo"]
    steps = calibration.spec_for(curve, 3072, 100, 8).schedule
    spec = SimpleNamespace(schedule=steps, coded_steps=8)
    seen: list[int] = []

    def make(scaling):
        if scaling not in errors:
            raise SpecError("no file of that size")
        return SimpleNamespace(scaling=scaling, spec=spec, encode_nfe=8, nfe=9), None

    def trace(codec, pixels, embed, weights, derived):
        seen.append(codec.scaling)
        picture = np.full((4, 4, 3), errors[codec.scaling] ** 0.5)
        return bytes([codec.scaling]), picture, walk(8)

    def walk(count):
        return {i: ratio * curve.at(steps[i].sigma) for i in range(count)} | {-1: 5.0}

    monkeypatch.setattr(levels, "encode_and_trace", trace)
    monkeypatch.setattr(levels, "first_errors", lambda codec, pixels, count: walk(count))
    monkeypatch.setattr(levels, "encode_picture", lambda codec, *more: bytes([codec.scaling]))
    return lambda tries: (levels.best_levels(np.zeros((4, 4, 3), np.uint8), curve, make, tries), seen)


def bowl(best: int) -> dict[int, float]:
    return {k: 100 + (k - best) ** 2 for k in range(SCALINGS)}


@pytest.mark.quick
def test_the_curves_own_levels_come_first_then_those_predicted_then_their_neighbours(monkeypatch):
    guess = min(range(SCALINGS), key=lambda k: abs(math.log(calibration.SCALES[k] / 0.3**levels.TRUST)))
    for tries in (2, 3, 5, 16):
        found, seen = fake(bowl(5), monkeypatch, 0.3)(tries)
        assert seen[:2] == [UNSCALED, guess]
        assert len(seen) == len(set(seen)) == tries == found.encodes
        assert found.nfe == 9 * tries
        assert found.data == bytes([min(seen, key=bowl(5).__getitem__)])
    assert found.scaling == 5
    assert fake(bowl(5), monkeypatch, 0.3)(5)[0].scaling == 5
    for best in range(3, 12):
        assert abs(fake(bowl(best), monkeypatch, 1.0)(5)[0].scaling - best) <= 1, "found without a prediction too"


@pytest.mark.quick
def test_one_try_is_a_prediction_that_half_a_walk_makes(monkeypatch):
    found, seen = fake(bowl(5), monkeypatch, 0.3)(1)
    assert not seen
    assert (found.encodes, found.nfe) == (1, 4 + 1 + 8)
    assert calibration.SCALES[found.scaling] == pytest.approx(0.3**levels.TRUST, rel=0.08)
    assert fake(bowl(5), monkeypatch, 1e-9)(1)[0].scaling == 0
    assert fake(bowl(5), monkeypatch, 1e9)(1)[0].scaling == SCALINGS - 1


@pytest.mark.quick
def test_a_scaling_without_a_file_is_passed_over(monkeypatch):
    some = {k: v for k, v in bowl(4).items() if k in (2, 8, 9)}
    found, seen = fake(some, monkeypatch, 0.3)(16)
    assert (sorted(seen), found.scaling, found.encodes) == ([2, 8, 9], 2, 3)
    assert fake({UNSCALED: 5.0}, monkeypatch, 0.3)(1)[0].scaling == UNSCALED
    with pytest.raises(SpecError, match="no file of that size"):
        fake({3: 5.0}, monkeypatch)(3)
    for tries in (0, 17):
        with pytest.raises(SpecError, match="from 1 to 16"):
            fake(bowl(8), monkeypatch)(tries)


def test_the_kept_file_has_the_least_error_by_the_weights(prior, smooth):
    smooth = smooth[:24, :32]
    weights = np.full(smooth.shape[:2], 0.1)
    weights[:, :20] = 1
    aim = Aim(Target(bpp=1.0, max_nfe=5), prior, curve_of(prior), level_tries=16)  # all that there are
    found = aim.chosen(smooth, weights)

    def error(data, codec):
        return np.average(np.square(shown(data, codec).astype(float) - smooth).mean(2), weights=weights)

    every = []
    for scaling in range(SCALINGS):
        tokens = aim.tokens_for_bytes(24, 32, 24 * 32 / 8, scaling)
        codec = aim.codec(24, 32, tokens, scaling)
        every.append(error(files.encode_picture(codec, smooth, None, weights, aim.derived(tokens, scaling)), codec))
    assert error(found.data, found.codec) == pytest.approx(min(every), abs=1e-9)
    assert len(set(every)) > 8


# ---- targets ------------------------------------------------------------------------------------------------------------
def test_a_rate_is_met_and_the_file_says_its_levels(prior, smooth):
    curve = curve_of(prior)
    plain, its_codec = Aim(Target(bytes=390, max_nfe=5), prior, curve).file(smooth)
    told: list[str] = []
    aim = Aim(Target(bytes=390, max_nfe=5), prior, curve, tell=told.append, level_tries=5)
    found = aim.chosen(smooth)
    container = Container.from_bytes(found.data)
    assert 0.97 * 390 <= len(found.data) <= 390
    assert found.scaling < UNSCALED, "this picture is easier than those of the curve"
    assert container.derived == (4, container.derived[1], found.scaling)
    assert files.spec_of(container) == found.codec.spec != its_codec.spec
    better = psnr(smooth, shown(found.data, found.codec))
    assert better > psnr(smooth, shown(plain, its_codec)) + 0.1
    assert np.array_equal(shown(found.data, Codec(files.spec_of(container), prior)), shown(found.data, found.codec))
    assert (found.encodes, found.nfe) == (5, 25)
    assert f"{calibration.SCALES[found.scaling]:g} x the curve's errors, +" in told[0]
    assert "5 encodes, 25 network calls" in told[0]


def test_levels_of_the_curve_stay_the_default(prior, smooth):
    plain = Aim(Target(bpp=1.0, max_nfe=5), prior, curve_of(prior))
    found = plain.chosen(smooth)
    assert found[:2] == plain.file(smooth)
    assert (found.scaling, found.encodes, found.nfe) == (UNSCALED, 1, 4)
    assert Container.from_bytes(found.data).derived[:1] == (4,)
    assert len(Container.from_bytes(found.data).derived) == 2


def test_a_quality_is_met_at_the_levels_of_the_picture(prior, smooth):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        plain, _ = Aim(Target(psnr=32.0, max_nfe=5), prior, curve_of(prior)).file(smooth)
        found = Aim(Target(psnr=32.0, max_nfe=5), prior, curve_of(prior), level_tries=3).chosen(smooth)
    assert psnr(smooth, shown(found.data, found.codec)) == pytest.approx(32, abs=0.1)
    assert found.scaling < UNSCALED
    assert len(found.data) < len(plain)
    assert found.encodes > 3


def test_another_seed_embeds_a_schedule_that_is_scaled(prior, smooth):
    found = Aim(Target(bpp=1.0, max_nfe=5, seed=3), prior, curve_of(prior), level_tries=3).chosen(smooth)
    container = Container.from_bytes(found.data)
    assert container.derived is None
    assert files.spec_of(container) == found.codec.spec
    with pytest.raises(SpecError, match="from 1 to 16"):
        Aim(Target(bpp=1.0), prior, curve_of(prior), level_tries=17)


# ---- presets ------------------------------------------------------------------------------------------------------------
def test_a_calibrated_preset_becomes_a_derived_file_of_as_many_tokens(prior, smooth):
    changes = {"steps": 6, "tokens": 9000}
    codec = noisebook.load("photo", backbone=prior, **changes)
    recipe = presets.changed(presets.get("photo").recipe, **changes)
    found = PresetLevels(codec, recipe, 3).chosen(smooth)
    container, plain = Container.from_bytes(found.data), Container.from_bytes(files.encode_picture(codec, smooth))
    assert found.scaling != UNSCALED
    assert container.derived == (6, container.derived[1], found.scaling)
    assert len(container.payload) == pytest.approx(len(plain.payload), rel=0.03)
    assert len(found.data) == 25 + len(container.payload)
    assert psnr(smooth, shown(found.data, found.codec)) > psnr(smooth, files.decode_picture(codec, plain))
    own = PresetLevels(codec, recipe, 3)
    own.aim.tokens_for_bytes = lambda *_: (_ for _ in ()).throw(SpecError("none"))  # no other levels are to be had
    assert own.chosen(smooth).data == files.encode_picture(codec, smooth), "the preset's own file"


@pytest.mark.parametrize("changes", [{"rule": "top"}, {"sigma_max": 5.0}, {"tokens": 0}, {"solver": "euler"}])
def test_a_codec_that_no_curve_made_is_refused(changes, prior):
    codec = noisebook.load("photo", backbone=prior, **changes)
    with pytest.raises(SpecError, match="take a calibrated preset"):
        PresetLevels(codec, presets.changed(presets.get("photo").recipe, **changes))


# ---- the command line ---------------------------------------------------------------------------------------------------
def test_the_options_and_what_a_row_says(tmp_path, capsys, smooth):
    picture, out = tmp_path / "a.png", tmp_path / "out"
    picture.write_bytes(png_bytes(smooth))
    made = ["--backbone", "gaussian-prior", "--bpp", "1", "--max-nfe", "5"]
    common = [str(picture), "--json", *made]
    rows = {}
    for name, more in {"default": [], "curve": ["--levels", "curve"], "picture": ["--levels", "picture"]}.items():
        assert main(["encode", *common, *more, "-o", str(out), "--force"]) == 0
        rows[name] = json.loads(capsys.readouterr().out)["images"][0] | {"data": (out / "a.nbk").read_bytes()}
    assert rows["default"]["data"] == rows["curve"]["data"]
    assert "curve_scale" not in rows["default"]
    row = rows["picture"]
    assert (row["encodes"], row["encoder_nfe"], row["nfe"]) == (3, 15, 4)
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["curve_scale"] == row["curve_scale"] < 1
    assert main(["eval", *common, "--levels", "picture", "--level-tries", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["encodes"] == 1


def test_what_cannot_be_asked_for(tmp_path, capsys, smooth):
    picture = tmp_path / "a.png"
    picture.write_bytes(png_bytes(smooth))
    assert main(["encode", str(picture), "-o", str(tmp_path / "o"), "--level-tries", "3"]) > 1
    assert "goes with --levels picture" in capsys.readouterr().err
    other = ["--levels", "picture", "--budget", "4", "--backbone", "gaussian-prior"]
    assert main(["encode", str(picture), "-o", str(tmp_path / "o"), *other]) > 1
    assert "take a calibrated preset" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["tokenize", str(tmp_path), "-o", str(tmp_path / "t"), "--levels", "picture"])
    assert stop.value.code == 2, "all images of a data set share their levels"
    assert not (tmp_path / "o").exists()


def test_a_trace_says_the_errors_of_each_step(prior, fresh):
    spec = calibration.spec_for(curve_of(prior), 3 * 24 * 32, 60, 5)
    codec, images = Codec(spec, prior), random_images(fresh, 2, 24, 32)
    tokens, decoded, errors = codec.trace(images)
    again, same = codec.reconstruct(images)
    assert tokens.equal(again)
    assert decoded.equal(same)
    assert list(errors) == [-1, 0, 1, 2, 3, 4]
    x = images.float() / 127.5 - 1
    assert errors[-1] == pytest.approx(float(x.square().mean()), rel=1e-4), "before the start nothing is known"
    for steps in (1, 3):
        part = codec.decode(tokens, (24, 32), steps)
        assert errors[steps] == pytest.approx(float((part - x).square().mean()), rel=1e-3)


def test_a_large_picture_embeds_the_levels_that_it_has(prior, smooth, monkeypatch):
    monkeypatch.setattr(stream, "MOST", 6000)
    found = Aim(Target(bpp=1.5, max_nfe=4), prior, curve_of(prior), level_tries=3).chosen(smooth)
    container = Container.from_bytes(found.data)
    spec = files.spec_of(container)
    assert container.derived is None
    assert spec.resolutions
    assert spec == found.codec.spec_for(48, 64)
    assert found.encodes == 3
    assert psnr(smooth, files.decode_picture(Codec(spec, prior), container)) > 25
