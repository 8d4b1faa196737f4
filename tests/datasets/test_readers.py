"""Rows as loops of training use them: writable, of any integer type, with nulls, in batches; pictures of any pipeline."""

import functools
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

import noisebook
from common import Shrink, random_images
from noisebook.datasets import TokenDataset, TokenizeBatch, TokenStream, collate, tokenize
from noisebook.errors import CodecMismatchError, ImageError, SpecError
from noisebook.runtime.limits import Limits

CHANGES = {"steps": 2, "budget": 8, "budget_last": 8, "vocab_size": 512, "scale_pixels": 0, "start_budget": 0}


@pytest.fixture(scope="module")
def codec():
    return noisebook.load("photo-low", backbone=Shrink(), **CHANGES)


@pytest.fixture(scope="module")
def made(tmp_path_factory, codec) -> Path:
    """5 pictures, one of them without a label."""
    folder = tmp_path_factory.mktemp("made")
    images = random_images(np.random.default_rng(0), 5, 16, 16).permute(0, 2, 3, 1).numpy()
    for name, image in zip(("0.png", "a/1.png", "a/2.png", "b/3.png", "c/4.png"), images, strict=True):
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "in" / name)
    tokenize(folder / "in", folder / "out", codec=codec, shard_size=2)
    return folder / "out"


def test_a_row_is_the_callers_own(made):
    data = TokenDataset(str(made))
    before = data[1]["tokens"].copy()
    row = data[1]
    row["tokens"][:] = 0
    row["label"] = "other"
    assert (data[1]["tokens"] == before).all()
    assert data[1]["label"] == "a"
    streamed = next(iter(TokenStream(str(made))))["tokens"]
    streamed += 1
    torch.from_numpy(data[0]["tokens"])  # would warn of an array that is not writable
    assert data[0]["tokens"].flags.writeable


def test_what_is_nested_in_a_row_is_the_callers_own(made):
    data = TokenDataset(str(made))
    data._rows(0)[0]["list"] = [{"x": [1]}]
    data[0]["list"][0]["x"].append(2)
    assert data[0]["list"] == [{"x": [1]}]


@pytest.mark.parametrize("dtype", ["int64", np.int32, np.dtype("uint32"), torch.int64, "uint16", int])
def test_tokens_are_of_the_type_that_is_asked_for(made, dtype):
    stored, asked = TokenDataset(str(made)), TokenDataset(str(made), dtype=dtype)
    kind = np.dtype(str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype)
    assert stored[0]["tokens"].dtype == np.uint16
    assert (
        {row["tokens"].dtype for row in asked} == {kind} == {row["tokens"].dtype for row in TokenStream(made, dtype=dtype)}
    )
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(stored, asked, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "uint8", np.int8, bool, "U4", "nonsense", torch.float16, torch.bfloat16])
def test_a_type_that_holds_no_token_is_refused(made, dtype):
    with pytest.raises(SpecError, match=r"integer type|does not hold") as error:
        TokenDataset(str(made), dtype=dtype)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"collate_fn": collate}, {"num_workers": 1}])
def test_rows_with_nulls_come_in_batches(made, options):
    batches = list(DataLoader(TokenDataset(str(made), dtype="int64"), batch_size=3, **options))
    assert [batch["label"] for batch in batches] == [[None, "a", "a"], ["b", "c"]]
    assert [batch["tokens"].shape for batch in batches] == [(3, 16), (2, 16)]
    assert batches[0]["tokens"].dtype == batches[0]["height"].dtype == torch.int64


def test_other_mappings_are_collated_as_ever():
    with pytest.raises(TypeError):
        default_collate([{"label": None}, {"label": 1}])


def test_a_batch_column_by_column():
    time = np.datetime64("2026-01-01")
    rows = [
        {"x": 1, "y": 1.5, "z": True, "n": None, "big": 1 << 63, "l": [1], "t": time, "mixed": 2, "flag": True},
        {"x": 2, "y": 2, "z": False, "n": 4, "big": 1, "l": [2, 3], "t": time, "mixed": None, "flag": 1, "more": b"x"},
    ]
    batch = collate(rows)
    assert torch.equal(batch["x"], torch.tensor([1, 2]))
    assert torch.equal(batch["y"], torch.tensor([1.5, 2], dtype=torch.float64))
    assert torch.equal(batch["z"], torch.tensor([True, False]))
    lists = {name: batch[name] for name in ("n", "big", "l", "t", "mixed", "flag", "more")}
    assert lists == {
        "n": [None, 4],
        "big": [1 << 63, 1],
        "l": [[1], [2, 3]],
        "t": [time, time],
        "mixed": [2, None],
        "flag": [True, 1],
        "more": [None, b"x"],
    }
    assert torch.equal(functools.partial(collate, null=-1)(rows)["n"], torch.tensor([-1, 4]))
    long, short = np.arange(3, dtype=np.uint16), np.arange(2, dtype=np.uint16)
    ragged = collate([{"tokens": long}, {"tokens": short}])["tokens"]
    assert [t.tolist() for t in ragged] == [[0, 1, 2], [0, 1]]
    assert collate([]) == {}


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_decode_takes_any_integer_type(codec, kind, fresh):
    small = noisebook.load("photo-low", backbone=codec.backbone, **{**CHANGES, "vocab_size": 128})
    tokens = small.encode(random_images(fresh, 2, 16, 16))
    expected = small.decode(tokens, (16, 16))
    given = torch.from_numpy(tokens.numpy().astype(kind))
    assert torch.equal(small.decode(given, (16, 16)), expected)
    assert torch.equal(small.decode(given, (16, 16), steps=1), small.decode(tokens, (16, 16), steps=1))
    most = np.full(tokens.shape, -1 if kind == "int8" else np.iinfo(kind).max, kind)
    with pytest.raises(CodecMismatchError, match="outside its vocabulary"):
        small.decode(torch.from_numpy(most), (16, 16))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bool, torch.bfloat16, torch.complex64])
def test_decode_takes_no_other_type(codec, kind):
    with pytest.raises(CodecMismatchError, match="takes integer tokens"):
        codec.decode(torch.zeros(1, 16, dtype=kind), (16, 16))


# ---- pipelines ----------------------------------------------------------------------------------------------------------
def make_backbone() -> Shrink:
    return Shrink()


class Counted(Shrink):
    """A backbone of one's own, with weights."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("backbone", [make_backbone, Shrink, Shrink(), Counted()])
def test_a_batch_is_pickled_with_a_backbone_of_ones_own(codec, backbone, fresh):
    images = random_images(fresh, 2, 16, 16)
    work = TokenizeBatch("photo-low", backbone=backbone, **CHANGES)
    expected = codec.encode(images).numpy()
    for _ in range(2):  # before it has worked, and after
        work = pickle.loads(pickle.dumps(work))
        assert (work({"image": images})["tokens"] == expected).all()


@pytest.fixture
def work(codec):
    return TokenizeBatch("photo-low", backbone=codec.backbone, **CHANGES)


def encoded(codec, *images):
    return [codec.encode(torch.from_numpy(x.copy()).permute(2, 0, 1)[None]).numpy()[0].tolist() for x in images]


def test_every_form_of_an_image_has_the_same_tokens(codec, work, fresh):
    x, y = (random_images(fresh, 1, *size)[0].permute(1, 2, 0).numpy() for size in ((16, 24), (24, 16)))
    expected, tensor = encoded(codec, x, y), torch.from_numpy
    opaque = [np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]) for image in (x, y)]
    forms = {
        "HWC": [x, y],
        "CHW": [x.transpose(2, 0, 1), y.transpose(2, 0, 1)],
        "CHW tensors": [tensor(x).permute(2, 0, 1), tensor(y).permute(2, 0, 1)],
        "HWC tensors": [tensor(x), tensor(y)],
        "opaque": opaque,
        "opaque CHW": [tensor(image).permute(2, 0, 1) for image in opaque],
        "Pillow": [Image.fromarray(x), Image.fromarray(y)],
        "of both kinds": [x, Image.fromarray(y)],
    }
    for name, images in forms.items():
        assert [t.tolist() for t in work({"image": images})["tokens"]] == expected, name
    for batch in (x[None], x.transpose(2, 0, 1)[None], tensor(x)[None], tensor(x).permute(2, 0, 1)[None]):
        assert work({"image": batch})["tokens"].tolist() == expected[:1]


def test_grey_and_transparent_images(codec, work, fresh):
    grey = random_images(fresh, 1, 16, 24, 1)[0, 0].numpy()
    half = np.where(grey > 100, 255, 0).astype(np.uint8)
    white = np.where(half == 255, grey, 255).astype(np.uint8)
    (gray,), (over,) = encoded(codec, np.dstack([grey] * 3)), encoded(codec, np.dstack([white] * 3))
    for image in (grey, grey[:, :, None], grey[None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert work({"image": [image]})["tokens"].tolist() == [gray]
    alpha = np.dstack([grey] * 3 + [half])
    two = np.dstack([grey, half])
    for image in (
        alpha,
        alpha.transpose(2, 0, 1),
        torch.from_numpy(alpha),
        Image.fromarray(alpha),
        two,
        two.transpose(2, 0, 1),
    ):
        assert work({"image": [image]})["tokens"].tolist() == [over]


def test_a_narrow_image_is_read_as_its_kind_has_it(codec, work, fresh):
    x = fresh.integers(0, 256, (3, 16, 3), np.uint8)
    assert work({"image": [x]})["tokens"].tolist() == encoded(codec, x)
    assert work({"image": [torch.from_numpy(x)]})["tokens"].tolist() == encoded(codec, x.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "mode", ["1", "P", "PA", "LA", "RGBA", "RGBa", "La", "I", "I;16", "F", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_of_pillow_is_taken(work, mode):
    image = Image.new({"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(mode, mode), (16, 16))
    assert len(work({"image": [image.convert(mode) if image.mode != mode else image]})["tokens"]) == 1


def test_a_lazy_picture_is_upright(codec, work, fresh):
    x = random_images(fresh, 1, 16, 24)[0].permute(1, 2, 0).numpy()
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(x).save(buffer, "PNG", exif=exif)
    expected = encoded(codec, np.rot90(x, -1))
    assert work({"image": [buffer.getvalue()]})["tokens"].tolist() == expected
    assert work({"image": [Image.open(io.BytesIO(buffer.getvalue()))]})["tokens"].tolist() == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image 1 of the batch: there is none"),
        ({"bytes": None, "path": "/etc/passwd"}, "only the path /etc/passwd, which is not opened"),
        ({"bytes": None, "path": None}, "it has no bytes$"),
        (np.zeros((8, 8, 3)), "make them uint8"),
        (torch.zeros(3, 8, 8), "make them uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), "make them uint8"),
        (np.zeros((0, 8, 3), np.uint8), "not uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), "not uint8"),
        (np.zeros((9, 9, 9), np.uint8), "a number of channels"),
        (np.zeros((40, 40, 3), np.uint8), "more than the limit"),
        ("a.png", "make them uint8"),
        (b"nonsense", "not a picture"),
    ],
)
def test_what_is_no_image_is_named_by_its_place(codec, image, message):
    work = TokenizeBatch("photo-low", backbone=codec.backbone, limits=Limits(pixels=1000), **CHANGES)
    with pytest.raises(ImageError, match=message):
        work({"image": [np.zeros((8, 8, 3), np.uint8), image]})
