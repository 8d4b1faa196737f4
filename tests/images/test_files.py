"""A file's decode is refused before it is begun, where it asks for more than the limits allow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import noisebook
from noisebook import CodecMismatchError, FormatError, ImageError
from noisebook.codec.codec import Codec
from noisebook.format.container import Container
from noisebook.images.files import check_decode, decode_picture, describe, encode_picture, spec_of
from noisebook.runtime.limits import Limits
from noisebook.spec import schedule

pytestmark = pytest.mark.quick


@pytest.fixture
def codec():
    return noisebook.load("photo", backbone="gaussian-prior", steps=2, budget=4)


@pytest.fixture
def file(codec, fresh):
    return Container.from_bytes(encode_picture(codec, fresh.integers(0, 256, (16, 24, 3), np.uint8)))


def refused(match: str, call, monkeypatch) -> None:
    """The call raises before any tensor is made."""
    for name in ("empty", "zeros", "full", "from_numpy", "randn", "arange"):
        monkeypatch.setattr(torch, name, lambda *args, _name=name, **kwargs: pytest.fail(f"torch.{_name} was called"))
    with pytest.raises(FormatError, match=match):
        call()


def test_pixels_of_a_decode_are_refused_before_it_begins(codec, file, monkeypatch):
    assert decode_picture(codec, file).shape == (16, 24, 3)
    assert decode_picture(codec, file, limits=Limits(pixels=16 * 24)).shape == (16, 24, 3)
    large = replace(file, height=65535, width=65535)
    refused(
        "65535 x 65535 has pixels: 4,294,836,225, more than the limit", lambda: decode_picture(codec, large), monkeypatch
    )
    refused("--max-pixels raises it", lambda: decode_picture(codec, file, limits=Limits(pixels=383)), monkeypatch)


def test_network_calls_of_a_decode_are_refused_before_it_begins(codec, file, monkeypatch):
    refused(
        "network calls: 3, .*--max-network-calls",
        lambda: decode_picture(codec, file, None, Limits(network_calls=2)),
        monkeypatch,
    )
    levels = np.geomspace(3, 0.1, 5001).tolist()
    spec = replace(codec.spec, schedule=schedule.falling(levels, 0.5, 1))
    refused("network calls: 5,001, more than the limit of 4,096", lambda: check_decode(spec, 9, 9), monkeypatch)
    check_decode(spec, 9, 9, steps=100)
    check_decode(spec, 9, 9, Limits(network_calls=5001))
    solver = replace(codec.spec, solver="euler", solver_levels=(*np.geomspace(0.09, 0.001, 5000), 0.0))
    refused("network calls: 5,003", lambda: check_decode(solver, 9, 9), monkeypatch)


def test_blocks_that_pad_a_small_image_far_are_refused(codec):
    spec = replace(codec.spec, rows=1 << 16, columns=1, start_budget=0)
    tall = Codec(spec, codec.backbone)
    with pytest.raises(FormatError, match="has pixels"):
        decode_picture(tall, Container(spec.hash, 1, 65535, b""))


def test_a_large_budget_is_refused_at_once(codec):
    for rule, vocab_size in (("poisson", 16), ("top", 1 << 33), ("bins", 65536)):
        spec = replace(codec.spec, rule=rule, vocab_size=vocab_size, schedule=schedule.falling([2, 1], 0.5, 1 << 24))
        spec = replace(spec, start_budget=0)
        with pytest.raises(noisebook.NoisebookError):
            decode_picture(Codec(spec, codec.backbone), Container(spec.hash, 4096, 4096, b"abc"))


def test_work_of_a_payload_is_limited_where_it_is_decoded_and_described(codec, tmp_path, fresh):
    steps = schedule.falling([2, 1], 0.5, 45)
    spec = replace(codec.spec, rule="top", vocab_size=1 << 12, start_budget=0, scale_pixels=0, schedule=steps)
    top = Codec(spec, codec.backbone)
    data = encode_picture(top, fresh.integers(0, 256, (16, 24, 3), np.uint8))
    (tmp_path / "a.nbk").write_bytes(data)
    assert describe(tmp_path / "a.nbk")["tokens"] == 45
    assert decode_picture(top, Container.from_bytes(data)).shape == (16, 24, 3)
    for call in (
        lambda limits: describe(tmp_path / "a.nbk", limits),
        lambda limits: decode_picture(top, Container.from_bytes(data), limits=limits),
    ):
        with pytest.raises(FormatError, match="--max-work raises it"):
            call(Limits(work=10))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            np.zeros((1, 3, 8, 8), np.uint8),
            r"\[B, H, W, 3\] for this codec, not \[1, 3, 8, 8\]: torch.from_numpy\(array\) is for",
        ),
        ([[1]], r"image 0 of the list: images must be a torch tensor .*, a numpy array .*, a PIL image, .* not list"),
        (None, r"images must be a torch tensor .*, a numpy array .*, a PIL image, or a list of them, not NoneType"),
        ("image", r"images must be a torch tensor .*, a numpy array .*, a PIL image, or a list of them, not str"),
    ],
)
def test_what_is_no_tensor_is_refused_in_words(codec, wrong, words):
    images, match = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"must be a torch tensor, .*torch.from_numpy"
    for call in (codec.encode, codec.reconstruct, codec.encode_packed):
        with pytest.raises(ImageError, match=words if call == codec.encode else match):
            call(wrong)
    shape = r"takes integer tokens \[B, \d+\]" if isinstance(wrong, np.ndarray) else match  # arrays of integers are tokens
    for call in (codec.decode, codec.decode_packed):
        with pytest.raises(CodecMismatchError, match=shape if call == codec.decode else match):
            call(wrong, (8, 8))
    if wrong is not None:
        with pytest.raises(ImageError, match=match):
            codec.encode(images, wrong)


def test_a_file_of_another_codec_is_refused_and_not_decoded_to_noise(codec, file):
    other = Codec(replace(codec.spec, seed=codec.spec.seed + 1), codec.backbone)
    with pytest.raises(CodecMismatchError, match=f"another codec \\({codec.spec.hash.hex()}, this one .*spec_of"):
        decode_picture(other, file)
    assert decode_picture(Codec(spec_of(file), codec.backbone), file).shape == (16, 24, 3)


def test_a_grey_picture_without_channels_is_refused_in_words(codec):
    with pytest.raises(ImageError, match=r"not \[8, 8\]: a grey one is \[H, W, 1\], that is pixels\[..., None\]"):
        encode_picture(codec, np.zeros((8, 8), np.uint8))
