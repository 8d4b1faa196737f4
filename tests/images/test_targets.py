"""Asked for a rate or a quality: files that have it, and what is said where it cannot be. Regions, and beginnings."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common import random_images
from noisebook import BackboneError, FormatError, ImageError, SpecError, backbones
from noisebook.cli.main import main
from noisebook.codec.codec import Codec
from noisebook.codec.measure import measure
from noisebook.format.container import OVERHEAD, Container
from noisebook.images import files
from noisebook.images.metrics import psnr
from noisebook.images.targets import Aim, Target, curve_of
from noisebook.spec import curve as calibration

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


@pytest.fixture(scope="module")
def prior():
    return backbones.load("gaussian-prior")


def aim(prior, **target) -> Aim:
    return Aim(Target(**target), prior, curve_of(prior))


def picture(fresh, height=96, width=128) -> np.ndarray:
    return random_images(fresh, 1, height, width)[0].permute(1, 2, 0).numpy().copy()


# ---- rates and qualities ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("calls", "near"), [(3, 0.1), (8, 0.03), (25, 0.02)])
@pytest.mark.parametrize("bpp", [0.3, 0.6, 1.5])
def test_a_rate_is_met_whatever_the_size(bpp, calls, near, prior, fresh):
    """Sums of few powers of two are not so near."""
    for height, width in ((96, 128), (77, 131), (200, 40)):
        data, codec = aim(prior, bpp=bpp, max_nfe=calls).file(picture(fresh, height, width))
        assert 8 * len(data) == pytest.approx(bpp * height * width, rel=near, abs=17)
        assert codec.nfe <= calls


@pytest.mark.parametrize("size", [60, 333, 2000])
def test_bytes_are_not_exceeded(size, prior, fresh):
    data, _ = aim(prior, bytes=size).file(picture(fresh))
    assert 0.98 * size - 3 <= len(data) <= size


def test_small_pictures_with_a_curve_of_ones_own_get_every_size_that_there_is(prior):
    """Each token brings a step at first, and each step some 25 bytes of specification."""
    own = replace(curve_of(prior), number=0)

    def size_of(tokens: int, **target) -> int:
        return Aim(Target(**target), prior, own)._size(28, 28, tokens)

    least = size_of(2, bytes=99)
    assert size_of(20, bytes=99) - least > 20 * 18  # where 18 tokens by themselves are 36 bytes
    for tokens in (2, 5, 10, 23, 40):
        size = size_of(tokens, bytes=99)
        found = Aim(Target(bytes=size), prior, own).tokens_for_bytes(28, 28, size)
        assert 0.9 * size <= size_of(found, bytes=size) <= size
        found = Aim(Target(bpp=8 * size / 28**2), prior, own).tokens_for_bytes(28, 28, size)
        assert abs(size_of(found, bytes=size) - size) <= max(4, 0.02 * size)
    with pytest.raises(SpecError, match=rf"the nearest is {least}: ask for a larger file \(the specification in it"):
        Aim(Target(bytes=least - 30), prior, own).tokens_for_bytes(28, 28, least - 30)
    with pytest.raises(SpecError, match="ask for a smaller file, or allow more calls"):
        Aim(Target(bytes=9000, max_nfe=6), prior, own).tokens_for_bytes(28, 28, 9000)


@pytest.mark.parametrize("decibels", [27.0, pytest.param(32.0, marks=pytest.mark.slow)])
def test_a_quality_is_met_within_a_tenth_of_a_decibel(decibels, prior, fresh):
    pixels = picture(fresh, 160, 192)
    data, codec = aim(prior, psnr=decibels).file(pixels)
    assert abs(psnr(pixels, files.decode_picture(codec, Container.from_bytes(data))) - decibels) <= 0.1


def test_a_file_carries_four_bytes_in_place_of_its_specification(prior, fresh):
    pixels = picture(fresh)
    data, codec = aim(prior, bpp=0.5).file(pixels)
    container = Container.from_bytes(data)
    assert len(data) == OVERHEAD + 4 + len(container.payload)
    assert container.derived == (24, container.derived[1])
    spec = files.spec_of(container)
    assert spec == codec.spec
    again = files.decode_picture(Codec(spec, prior), container)
    assert np.array_equal(again, files.decode_picture(codec, container))
    for steps, tokens in ((23, container.derived[1]), (24, container.derived[1] + 1)):
        other = Container(container.codec_hash, 96, 128, container.payload, container.preset, None, (steps, tokens))
        with pytest.raises(FormatError, match="does not match the codec hash"):
            files.spec_of(other)
    unknown = Container(container.codec_hash, 96, 128, container.payload, 250, None, container.derived)
    assert files.spec_of(unknown) is None


@pytest.mark.parametrize("number", [n for n in range(1, 256) if calibration.by_number(n) is not None])
def test_a_file_of_more_tokens_than_its_picture_can_hold_is_refused(tmp_path, capsys, number):
    """Levels of such a codec would be zero: a file that names one was made by hand."""
    for tokens in (500, 20_000, (1 << 24) - 1):
        made = Container(bytes(8), 2, 1, bytes(100), number, None, (255, tokens))
        with pytest.raises((SpecError, FormatError)):
            files.spec_of(made)
        (tmp_path / "x.nbk").write_bytes(made.to_bytes())
        for words in (["inspect"], ["verify"], ["decode", "-o", str(tmp_path / "out")]):
            assert main([*words, str(tmp_path / "x.nbk")]) > 1
            said = capsys.readouterr()
            assert "Traceback" not in said.out + said.err
            assert "division" not in said.out + said.err


def test_another_seed_or_vocabulary_is_embedded(prior, fresh):
    for more in ({"seed": 3}, {"vocab_size": 1024}):
        data, codec = aim(prior, bpp=1.0, **more).file(picture(fresh))
        container = Container.from_bytes(data)
        assert container.derived is None
        assert files.spec_of(container) == codec.spec
        assert 8 * len(data) == pytest.approx(96 * 128, rel=0.02)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({}, "ask for one of"),
        ({"bpp": 1, "psnr": 30}, "bpp and psnr"),
        ({"bpp": 0}, "above 0"),
        ({"psnr": float("nan")}, "above 0"),
        ({"bytes": 100, "max_nfe": 1}, "max_nfe"),
        ({"bytes": 100, "max_nfe": 257}, "max_nfe"),
    ],
)
def test_what_cannot_be_asked_for(target, reason):
    with pytest.raises(SpecError, match=reason):
        Target(**target)


def test_what_cannot_be_had(prior, fresh):
    for target in ({"bytes": 20}, {"bpp": 0.001}, {"bpp": 100.0}, {"psnr": 90.0}):
        with pytest.raises(SpecError, match=r"no file of|no number of tokens"):
            aim(prior, **target).file(picture(fresh, 48, 48))


FLAT = {"white": 255, "black": 0, "grey": 128, "red": (255, 0, 0)}


@pytest.mark.parametrize("name", list(FLAT))
def test_a_flat_picture_has_the_smallest_file_that_reaches_a_quality(name, prior):
    """Its PSNR goes by leaps. A warning says by how much it is above what was asked for."""
    pixels, told = np.full((40, 48, 3), FLAT[name], np.uint8), []
    made = Aim(Target(psnr=34.3), prior, curve_of(prior), tell=told.append)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        data, codec = made.file(pixels)
    tries = [(float(line.split()[2]), float(line.split()[4])) for line in told]
    got = psnr(pixels, files.decode_picture(codec, Container.from_bytes(data)))
    if abs(got - 34.3) <= 0.105:
        return
    assert min(abs(p - 34.3) for _, p in tries) > 0.095
    assert 8 * len(data) / (40 * 48) == pytest.approx(min(rate for rate, p in tries if p >= 34.3), abs=1e-4)
    assert got >= 34.3
    assert [f"{got:.2f} dB is what the smallest file has that reaches 34.3 dB" in str(w.message) for w in seen] == [True]


def test_the_smallest_file_of_all_is_enough(prior, monkeypatch):
    """Nothing is smaller than two tokens: no other number is tried."""
    monkeypatch.setattr("noisebook.images.targets.psnr", lambda a, b: 40.0)
    told = []
    with pytest.warns(RuntimeWarning, match="40.00 dB is what the smallest file has that reaches 10 dB"):
        _, codec = Aim(Target(psnr=10), prior, curve_of(prior), tell=told.append).file(np.zeros((40, 48, 3), np.uint8))
    assert codec.spec.start_budget + sum(step.budget for step in codec.spec.schedule) == 2
    assert len(told) < 8


def test_a_quality_out_of_reach_says_the_nearest_and_what_to_do(prior, fresh):
    for pixels, wanted in ((np.full((1, 1, 3), 255, np.uint8), 40.0), (picture(fresh, 24, 24), 95.0)):
        told = []
        with pytest.raises(SpecError, match=r"the nearest was \d+\.\d\d dB: ask for no more .*more calls") as info:
            Aim(Target(psnr=wanted), prior, curve_of(prior), tell=told.append).file(pixels)
        assert len(told) == len({line.split(":")[1] for line in told}), "a codec was tried twice"
        assert "\n" not in str(info.value)
    one = np.full((1, 1, 3), 100, np.uint8)
    with pytest.warns(RuntimeWarning, match="that reaches 15 dB"):
        data, codec = Aim(Target(psnr=15.0), prior, curve_of(prior)).file(one)
    assert psnr(one, files.decode_picture(codec, Container.from_bytes(data))) >= 15


# ---- discrete-time models -----------------------------------------------------------------------------------------------
def test_a_network_of_1000_levels_calibrates_at_every_rate():
    ddpm = backbones.load("cifar10-ddpm")
    curve = measure(ddpm, [random_images(np.random.default_rng(0), 2, 32, 32)], nodes=13)
    assert (len(curve.levels), curve.levels[-1]) == (1000, pytest.approx(0.01, rel=1e-4))
    assert calibration.Curve.from_json(curve.to_json()) == curve
    older = replace(curve, levels=())  # as curves were written before they held the model's levels
    for calls, rates in {3: (0.1, 2), 25: (0.1, 2, 8), 256: (8,)}.items():
        for bpp in rates:
            height, width = 480, 640
            made = Aim(Target(bpp=bpp, max_nfe=calls), ddpm, curve)
            size = bpp * height * width / 8
            tokens = made.tokens_for_bytes(height, width, size)
            assert made._size(height, width, tokens) == pytest.approx(size, rel=0.1)
            codec = made.codec(height, width, tokens)  # which refuses levels that the model does not have
            assert codec.nfe <= calls
            spec = calibration.spec_for(curve, 3 * height * width, tokens, calls - 1)
            assert spec == codec.spec
            again = calibration.spec_for(older, 3 * height * width, tokens, calls - 1)
            Codec(calibration.with_known_levels(again, ddpm, 3 * height * width), ddpm)


def test_a_curve_of_another_backbone_is_refused(prior):
    with pytest.raises(BackboneError, match="noisebook calibrate"):
        Aim(Target(bpp=1), prior, calibration.shipped_curves()["photo"])


def test_a_backbone_without_a_curve_says_how_to_get_one(shrink, tmp_path):
    with pytest.raises(SpecError, match="noisebook calibrate shrink"):
        curve_of(shrink)
    with pytest.raises(SpecError, match="cannot be read"):
        curve_of(shrink, str(tmp_path / "none.json"))


# ---- regions, and beginnings --------------------------------------------------------------------------------------------
def test_tokens_go_where_a_mask_is_white(prior, fresh):
    pixels, mask = picture(fresh), np.full((96, 128), 0.1, np.float32)
    mask[:, :64] = 1
    ways = {}
    for name, weights in (("plain", None), ("masked", mask)):
        data, codec = aim(prior, bpp=0.5).file(pixels, weights)
        shown = files.decode_picture(codec, Container.from_bytes(data)).astype(float)
        error = (shown - pixels) ** 2
        ways[name] = (error[:, :60].mean(), error[:, 68:].mean(), len(data))
    assert ways["masked"][0] < 0.9 * ways["plain"][0]
    assert ways["masked"][1] > ways["plain"][1]
    assert ways["masked"][2] == ways["plain"][2]


def test_even_weights_change_nothing(prior, fresh):
    codec = aim(prior, bpp=0.5).codec(48, 48, 100)
    x = random_images(fresh, 2, 48, 48)
    assert torch.equal(codec.encode(x), codec.encode(x, torch.full((2, 1, 48, 48), 0.25)))


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(2, 3, 48, 48),
        torch.zeros(2, 1, 48, 48),
        -torch.ones(2, 1, 48, 48),
        torch.full((2, 1, 48, 48), float("nan")),
        torch.ones(2, 1, 48, 48).long(),
    ],
)
def test_weights_that_say_nothing_are_refused(bad, prior, fresh):
    codec = aim(prior, bpp=0.5).codec(48, 48, 100)
    with pytest.raises(ImageError, match="weights must be"):
        codec.encode(random_images(fresh, 2, 48, 48), bad)


def test_the_beginning_of_a_stream_decodes(prior, fresh):
    """The first n steps' tokens alone, and what follows them makes no difference; more steps are nearer to the image."""
    pixels = picture(fresh)
    codec = aim(prior, bpp=1.0).codec(96, 128, 700)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    tokens, whole = codec.reconstruct(x)
    layout = codec.layout_for(96, 128)
    quality = []
    for n in (1, 6, 12, 24):
        there = int((layout.step_index < n).sum())
        shown = codec.decode(tokens[:, :there], (96, 128), steps=n)
        noisy = torch.cat([tokens[:, :there], torch.zeros_like(tokens[:, there:])], 1)
        assert torch.equal(shown, codec.decode(noisy, (96, 128), steps=n))
        quality.append(-float((shown - (x / 127.5 - 1)).square().mean()))
    assert quality == sorted(quality)
    assert torch.equal(codec.decode(tokens, (96, 128), steps=24), whole)
    for n in (0, 25):
        with pytest.raises(SpecError, match="steps must be"):
            codec.decode(tokens, (96, 128), steps=n)


# ---- on the command line ------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path, fresh):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(picture(fresh, 64, 80)).save(tmp_path / "in" / f"{name}.png")
    return tmp_path


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    shown = capsys.readouterr()
    return code, json.loads(shown.out) if "--json" in argv else None, shown.err


PRIOR = ("--backbone", "gaussian-prior")


def test_a_rate_on_the_command_line(folder, capsys):
    code, out, _ = run(capsys, "encode", folder / "in", "-o", folder / "out", *PRIOR, "--bpp", 1, "--json")
    assert code == 0
    found = sorted((folder / "out").glob("*.nbk"))
    sizes = [path.stat().st_size for path in found]
    assert sizes == pytest.approx([64 * 80 / 8] * 2, rel=0.02)
    assert {row["bytes"] for row in out["images"]} == set(sizes)
    qualities = []
    for steps in (None, 3):
        more = () if steps is None else ("--steps", steps)
        code, _, _ = run(capsys, "decode", *found, "-o", folder / f"back{steps}", *more)
        assert code == 0
        made = ("in", ""), (f"back{steps}", ".decoded")
        images = [[np.asarray(Image.open(folder / d / f"{n}{kind}.png")) for n in "ab"] for d, kind in made]
        qualities.append([psnr(x, y) for x, y in zip(*images, strict=True)])
    assert qualities[0][0] > qualities[1][0] > 5
    code, out, _ = run(capsys, "inspect", folder / "out" / "a.nbk", "--json")
    assert code == 0
    assert out["files"][0]["derived"][0] == 24


def test_a_quality_and_a_region_on_the_command_line(folder, capsys):
    Image.new("L", (80, 64), 255).save(folder / "mask.png")
    code, out, told = run(
        capsys,
        "roundtrip",
        folder / "in",
        "-o",
        folder / "out",
        *PRIOR,
        "--psnr",
        26,
        "--roi",
        folder / "mask.png",
        "--effort",
        2,
        "--json",
    )
    assert code == 0
    assert told.count("try 1: ") == 2
    assert [row["psnr"] for row in out["images"]] == pytest.approx([26, 26], abs=0.5)  # small pictures: by leaps
    Image.new("L", (8, 8), 255).save(folder / "mask.png")
    code, out, _ = run(
        capsys, "encode", folder / "in", "-o", folder / "x", *PRIOR, "--bpp", 1, "--roi", folder / "mask.png", "--json"
    )
    assert code == 3
    assert not list((folder / "x").glob("*.nbk"))


@pytest.mark.parametrize(
    "options",
    [
        ("--bpp", 1, "--psnr", 30),
        ("--max-nfe", 8),
        ("--bpp", 1, "--preset", "photo"),
        ("--bpp", 1, "--steps", 4),
        ("--bpp", -1),
    ],
    ids=str,
)
def test_targets_that_contradict_themselves(options, folder, capsys):
    code, _, error = run(capsys, "encode", folder / "in", "-o", folder / "out", *PRIOR, *options)
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())


def test_calibrate_makes_what_a_target_needs(folder, capsys):
    curve = folder / "my.curve.json"
    code, _, _ = run(capsys, "calibrate", "gaussian-prior", folder / "in", "-o", curve, "--crop", 48, "--json")
    assert code == 0
    assert calibration.Curve.from_json(curve.read_text()).number == 0
    code, _, _ = run(capsys, "encode", folder / "in", "-o", folder / "out", *PRIOR, "--curve", curve, "--bytes", 3000)
    assert code == 0
    assert all(2900 < p.stat().st_size <= 3000 for p in (folder / "out").glob("*.nbk"))
    assert run(capsys, "decode", *(folder / "out").glob("*.nbk"), "-o", folder / "back")[0] == 0
    assert (
        run(capsys, "encode", folder / "in", "-o", folder / "no", "--curve", curve, "--bpp", 1)[0] == 6
    )  # photo's it is not
    assert run(capsys, "calibrate", "gaussian-prior", folder / "in", "-o", curve, "--skip", 5)[0] == 3
    assert run(capsys, "calibrate", "gaussian-prior", folder / "in", "-o", curve, "--count", 0)[0] == 2
