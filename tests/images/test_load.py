"""noisebook.load: a codec in one call, aimed at a rate, a quality or a number of tokens; PIL images as files are read."""

import inspect
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import noisebook
from common import random_images
from noisebook import BackboneError, ImageError, SpecError, backbones
from noisebook.codec.codec import Codec
from noisebook.codec.measure import measure
from noisebook.datasets import CodecRecipe, TokenizeBatch
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image
from noisebook.images.metrics import psnr
from noisebook.images.pillow import pixels_of_pil
from noisebook.images.targets import Aim, Target, curve_of
from noisebook.spec import presets

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")
PRIOR = "gaussian-prior"


def rate(codec, size) -> float:
    return codec.layout_for(*size).bits / math.prod(size)


# ---- aims ---------------------------------------------------------------------------------------------------------------
def test_a_rate_at_one_size_is_that_of_a_data_set():
    for size, bpp, more in (((96, 128), 0.5, {}), ((77, 131), 1.2, {"max_nfe": 8}), ((96, 128), 0.5, {"seed": 3})):
        codec = noisebook.load(backbone=PRIOR, bpp=bpp, size=size, **more)
        assert codec.default_size == size
        assert rate(codec, size) == pytest.approx(bpp, rel=0.1)
        calls = {k: v for k, v in more.items() if k == "max_nfe"}
        recipe = CodecRecipe(backbone=PRIOR, bpp=bpp, changes={k: v for k, v in more.items() if k == "seed"}, **calls)
        assert codec.spec == recipe.load(size).spec
        assert codec.nfe <= more.get("max_nfe", 25)


def test_a_batch_of_somebody_elses_pipeline_has_a_rate(fresh):
    batch = {"image": list(random_images(fresh, 3, 32, 32))}
    tokens = TokenizeBatch(backbone=PRIOR, bpp=1.0, size=(32, 32))(batch)["tokens"]
    assert np.array_equal(tokens, noisebook.load(backbone=PRIOR, bpp=1.0, size=(32, 32)).encode(torch.stack(batch["image"])))


def test_a_rate_without_a_size_is_that_of_every_size():
    codec = noisebook.load(backbone=PRIOR, bpp=0.5)
    assert codec.default_size == presets.SIZE
    for size in ((512, 768), (768, 512), (200, 280), (90, 128)):
        assert rate(codec, size) == pytest.approx(0.5, rel=0.03)
    own = noisebook.load(backbone="cifar10-edm", bpp=1.0, max_nfe=8)  # of one size, which it is made for
    assert own.default_size == (32, 32)
    assert rate(own, (32, 32)) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("size", [(32, 32), (256, 256), (50, 80)])
@pytest.mark.parametrize("tokens", [2, 7, 64, 700])
def test_a_number_of_tokens(tokens, size):
    codec = noisebook.load(backbone=PRIOR, tokens=tokens, size=size)
    assert codec.tokens_per_image() == pytest.approx(tokens, rel=0.03)
    if tokens == 64:
        assert codec.encode(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape == (1, codec.tokens_per_image(size))


def test_tokens_of_a_preset_are_what_they_were():
    recipe = presets.changed(presets.get("photo").recipe, tokens=900, steps=4)
    spec = noisebook.load("photo", tokens=900, steps=4).spec
    assert spec == noisebook.load(tokens=900, steps=4).spec == recipe.build(backbones.load("photo-2"))
    assert spec.scale_pixels == math.prod(presets.SIZE)


def test_a_quality_is_what_the_curve_says(fresh):
    prior = backbones.load(PRIOR)
    for size in ((96, 128), None):
        codec = noisebook.load(backbone=prior, psnr=26, size=size)
        predicted = 10 * math.log10(4 / curve_of(prior).at(codec.spec.sigma_last))
        assert predicted == pytest.approx(26, abs=0.1)
    aim = Aim(Target(psnr=26), prior, curve_of(prior))
    exact = noisebook.load(backbone=prior, psnr=26, size=(96, 128))
    assert exact.spec == aim.codec(96, 128, aim.tokens_for_psnr(96, 128, 26)).spec
    qualities = []
    x = random_images(fresh, 1, 96, 128)
    for wanted in (20, 24, 28):
        codec = noisebook.load(backbone=prior, psnr=wanted, size=(96, 128))
        shown = codec.decode(codec.encode(x), dtype="uint8")
        qualities.append(psnr(x[0].permute(1, 2, 0).numpy(), shown[0].permute(1, 2, 0).numpy()))
    assert qualities[0] + 0.5 < qualities[1] < qualities[2] - 0.5


def test_a_curve_of_ones_own(shrink, tmp_path):
    curve = measure(shrink, [random_images(np.random.default_rng(0), 2, 32, 32)], nodes=9)
    (tmp_path / "shrink.json").write_text(curve.to_json())
    codecs = [noisebook.load(backbone=shrink, tokens=40, curve=c) for c in (curve, tmp_path / "shrink.json")]
    assert codecs[0].spec == codecs[1].spec
    assert codecs[0].tokens_per_image() == pytest.approx(40, abs=2)
    with pytest.raises(
        SpecError, match=r"noisebook calibrate shrink IMAGES -o FILE`, with MODULE:FACTORY .*, then give curve=FILE"
    ):
        noisebook.load(backbone=shrink, tokens=40, size=(32, 32))
    with pytest.raises(BackboneError, match="the curve was measured of 'shrink'"):
        noisebook.load(backbone=PRIOR, tokens=40, curve=curve)


CONTRADICTIONS = {
    "two aims": ({"bpp": 1, "psnr": 30}, "one of bpp, psnr and tokens, not for bpp and psnr"),
    "an aim and a preset": ({"preset": "photo", "bpp": 1}, "bpp makes its own schedule, which the preset 'photo' has"),
    "tokens of a size and a preset": ({"preset": "photo", "tokens": 9, "size": (8, 8)}, "tokens with size makes its own"),
    "an aim and a specification": ({"preset": presets.get("photo").spec, "psnr": 30}, "psnr .*a finished specification"),
    "an aim and a change": ({"bpp": 1, "steps": 3}, "bpp makes its own schedule.* vocab_size and seed, not with steps"),
    "an aim and a budget": ({"psnr": 20, "budget": 64}, "not with budget"),
    "a size of nothing": ({"size": (8, 8)}, "size goes with bpp, psnr or tokens"),
    "a curve of nothing": ({"preset": "photo", "curve": "x"}, "curve goes with"),
    "calls of nothing": ({"budget": 4, "max_nfe": 9}, "max_nfe goes with"),
    "no rate": ({"bpp": 0}, "bpp must be above 0"),
    "no calls": ({"bpp": 1, "max_nfe": 0}, "max_nfe must be from 2"),
    "half a size": ({"bpp": 1, "size": 32}, r"size is the \(height, width\)"),
    "one token": ({"tokens": 1, "size": (8, 8)}, "whole number, 2 or more, not 1"),
    "a part of a token": ({"tokens": 9.5, "size": (8, 8)}, "whole number, 2 or more, not 9.5"),
    "too low a rate": ({"bpp": 1e-4, "size": (32, 32)}, "no 0.0001 bits per pixel .*; the nearest is"),
    "too high a rate": ({"bpp": 100, "size": (32, 32)}, "no 100 bits per pixel .*; the nearest is"),
    "too many tokens": ({"tokens": 10**6, "size": (32, 32)}, "no 1e.06 tokens .*; the nearest is"),
    "too good": ({"psnr": 90}, "known to give 90 dB .*: ask for less"),
    "too good for few calls": ({"psnr": 40, "max_nfe": 2, "size": (32, 32)}, "40 dB .*ask for less, or for more max_nfe"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_or_cannot_be_had(kind):
    options, words = CONTRADICTIONS[kind]
    options = {**options, **({} if "preset" in options else {"backbone": PRIOR})}
    with pytest.raises(SpecError, match=words) as info:
        noisebook.load(options.pop("preset", None), **options)
    assert "\n" not in str(info.value)


def test_what_is_refused_changes_no_backbone_of_the_callers(shrink):
    seen = []
    shrink.accelerate = lambda *args, **options: seen.append(options)
    for options in ({"bpp": 1}, {"budget": -1}, {"steps": 0}):
        with pytest.raises(SpecError):
            noisebook.load(backbone=shrink, dtype="bfloat16", **options)
    assert not seen


def test_every_argument_of_a_preset_is_one_of_load():
    from noisebook.codec.load import load

    mine = inspect.signature(noisebook.load).parameters
    for name, theirs in inspect.signature(load).parameters.items():
        if name not in ("preset", "read_picture"):
            assert (mine[name].default, mine[name].kind) == (theirs.default, theirs.kind), name


# ---- PIL images ---------------------------------------------------------------------------------------------------------
def saved(image, form, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    buffer.seek(0)
    return buffer


def files(fresh) -> dict[str, io.BytesIO]:
    colours = Image.fromarray(random_images(fresh, 1, 24, 40)[0].permute(1, 2, 0).numpy())
    turned, adobe = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    turned[0x0112] = 6
    clear = colours.copy()
    clear.putalpha(Image.linear_gradient("L").resize(colours.size))
    return {
        "colours": saved(colours, "PNG"),
        "jpeg": saved(colours, "JPEG"),
        "turned": saved(colours, "JPEG", exif=turned),
        "clear": saved(clear, "PNG"),
        "palette": saved(colours.quantize(7), "PNG"),
        "grey": saved(colours.convert("L"), "PNG"),
        "one bit": saved(colours.convert("1"), "PNG"),
        "a clear colour": saved(colours, "PNG", transparency=colours.getpixel((3, 3))),
        "a profile of no colours": saved(colours, "PNG", icc_profile=adobe),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pil_image_has_the_pixels_of_its_file(channels, fresh):
    for name, file in files(fresh).items():
        wanted = read_image(file, channels)
        got = pixels_of_pil(Image.open(file), channels)
        assert got.shape == wanted.shape, name
        assert np.array_equal(got, wanted), name


def test_encode_takes_pil_images_and_lists_of_any_size(fresh):
    codec = noisebook.load("photo", backbone=PRIOR, steps=2, budget=4)
    given, wanted = [], []
    for file in files(fresh).values():
        pixels = torch.from_numpy(read_image(file).copy()).permute(2, 0, 1)[None]
        given, wanted = [*given, Image.open(file)], [*wanted, codec.encode(pixels)]
    assert torch.equal(codec.encode(given[0]), wanted[0])
    tokens = codec.encode(given)
    assert all(torch.equal(a, b) for a, b in zip(tokens, wanted, strict=True))
    shown = codec.decode(tokens[2], (40, 24), dtype="uint8")  # upright
    assert np.array_equal(shown[0].permute(1, 2, 0).numpy(), pixels_of(codec.decode(tokens[2], (40, 24)))[0])
    for other in codec.aliases():
        assert torch.equal(other.encode(given[0]), wanted[0])


def test_a_picture_that_cannot_be_read_and_a_codec_that_reads_none(fresh, shrink):
    codec = noisebook.load("photo", backbone=PRIOR, steps=2, budget=4)
    whole = saved(Image.new("RGB", (64, 64), "red"), "PNG").getvalue()
    with pytest.raises(ImageError, match="image 0 of the list: cannot be read"):
        codec.encode([Image.open(io.BytesIO(whole[:-30]))])
    with pytest.raises(ImageError, match=r"not made by noisebook\.load.*read_image"):
        Codec(codec.spec, codec.backbone).encode(Image.new("RGB", (8, 8)))
