"""What the caller sets as torch's default dtype or device changes no bit and stays as it was set."""

from dataclasses import replace

import pytest
import torch

import noisebook
from common import random_images
from noisebook import backbones
from noisebook.codec import modes
from noisebook.codec.measure import measure
from noisebook.errors import BackboneError, SpecError
from noisebook.format.container import Container
from noisebook.images.files import decode_picture, encode_picture
from noisebook.runtime.devices import own_defaults


@pytest.fixture(params=[(torch.float64, "meta"), (torch.bfloat16, None)], ids=["float64 on meta", "bfloat16"])
def defaults(request):
    """Sets the caller's defaults, and takes them back."""
    dtype, device = request.param

    def be(wanted: bool) -> None:
        torch.set_default_dtype(dtype if wanted else torch.float32)
        torch.set_default_device(device if wanted else None)

    yield be
    be(False)


def results(name: str, images: torch.Tensor) -> list:
    codec = noisebook.load("photo", backbone=name, steps=1, budget=4)
    tokens, seen = codec.reconstruct(images)
    size = tuple(images.shape[2:])
    file = encode_picture(codec, images[0].permute(1, 2, 0).numpy())
    return [
        tokens,
        seen,
        codec.encode_packed(images),
        codec.decode(tokens, size),
        torch.from_numpy(decode_picture(codec, Container.from_bytes(file))),
        *vars(codec.layout_for(*size)).values(),
    ]


@pytest.mark.parametrize("name", backbones.shipped())
def test_every_shipped_backbone_gives_the_same_bits(name, defaults, fresh):
    images = random_images(fresh, 1, 16, 24)
    right = results(name, images)
    defaults(True)
    seen = results(name, images)
    dtype, device = torch.get_default_dtype(), torch.get_default_device().type
    defaults(False)
    assert (dtype, device) != (torch.float32, "cpu")  # still the caller's
    for a, b in zip(right, seen, strict=True):
        assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
        assert torch.equal(a, b)


def test_modes_and_curves_too(defaults, fresh):
    images = random_images(fresh, 2, 16, 16)

    def all_of() -> list:
        codec = noisebook.load("photo", backbone="gaussian-prior", steps=3, budget=4)
        curve = measure(codec.backbone, [images], seed=3, nodes=3)
        return [*modes.generate(codec, 1, (16, 16), 5), modes.edit(codec, codec, images), curve]

    right = all_of()
    defaults(True)
    seen = all_of()
    defaults(False)
    for a, b in zip(right, seen, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_defaults_come_back_after_an_error(defaults):
    defaults(True)
    before = torch.get_default_dtype(), torch.get_default_device()
    with pytest.raises(BackboneError):
        noisebook.load("photo", backbone="no-such-backbone")
    assert (torch.get_default_dtype(), torch.get_default_device()) == before
    with own_defaults():
        assert torch.empty(1).dtype == torch.float32
        assert torch.empty(1).device.type == "cpu"
    assert (torch.get_default_dtype(), torch.get_default_device()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_where_there_is_none_is_one_line():
    for call in (lambda: noisebook.load("photo", device="cuda"), lambda: backbones.load("photo", "cuda")):
        with pytest.raises(SpecError, match="device 'cuda' cannot be used") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [torch.nn.Conv2d(3, 3, 1), lambda y, sigma: y, 7])
def test_what_is_no_backbone_is_refused_in_words(wrong):
    spec = noisebook.load("photo").spec
    for call in (
        lambda: noisebook.load("photo", backbone=wrong),
        lambda: noisebook.load("photo", backbone=wrong, steps=2),
        lambda: noisebook.load(spec, backbone=wrong),
        lambda: noisebook.codec.codec.Codec(spec, wrong),
    ):
        with pytest.raises(BackboneError, match="derive a class from it"):
            call()


@pytest.mark.parametrize("fingerprint", ["f", "F" * 64, "0" * 63, "x" * 64, "0" * 64 + "\n"])
def test_a_codec_is_made_only_with_what_its_files_can_say(fingerprint):
    backbone = backbones.load("gaussian-prior")
    spec = replace(noisebook.load("photo", backbone=backbone, steps=2).spec, fingerprint=fingerprint)
    backbone.fingerprint = fingerprint
    with pytest.raises(BackboneError, match=r"64 hex digits.*fingerprint_of"):
        noisebook.load(spec, backbone=backbone)
    backbone.fingerprint, backbone.name = "0" * 64, "a\nb"
    with pytest.raises(BackboneError, match="control characters"):
        noisebook.load(replace(spec, fingerprint="0" * 64), backbone=backbone)
