"""`noisebook.torch`: pictures to tokens in the workers of a DataLoader."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import noisebook
from common import Shrink, random_images
from noisebook import ImageError, SpecError
from noisebook.runtime.limits import Limits
from noisebook.torch import Transform

SIZE = (16, 16)
TINY = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}


def pictures(fresh, count: int) -> list[np.ndarray]:
    return [x.permute(1, 2, 0).numpy() for x in random_images(fresh, count, *SIZE)]


class Pictures(torch.utils.data.Dataset):
    """As a data set of torchvision: pictures of Pillow, and a transform."""

    def __init__(self, pixels, transform):
        self.pixels, self.transform = pixels, transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.pixels[i])), i


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_the_codecs_tokens(workers, fresh):
    pixels, transform = pictures(fresh, 6), Transform("photo", backbone=Shrink, **TINY)
    transform.cost(SIZE)  # the codec that this makes is not the workers'
    loader = torch.utils.data.DataLoader(Pictures(pixels, transform), batch_size=3, num_workers=workers)
    tokens = torch.cat([tokens for tokens, _ in loader])
    assert tokens.dtype == torch.int64
    codec = noisebook.load("photo", backbone=Shrink(), **TINY)
    expected = [codec.encode(torch.from_numpy(x).permute(2, 0, 1)[None])[0] for x in pixels]
    assert torch.equal(tokens, torch.stack(expected))


def test_a_codec_is_made_at_the_first_picture_and_not_pickled(fresh):
    transform = Transform("photo", backbone="no-such-backbone", **TINY)
    with pytest.raises(noisebook.BackboneError):
        transform(pictures(fresh, 1)[0])
    transform = Transform("photo", backbone="gaussian-prior", **TINY)
    empty = len(pickle.dumps(transform))
    tokens = transform(pictures(fresh, 1)[0])
    assert len(pickle.dumps(transform)) == empty < 2000
    assert tokens.shape == pickle.loads(pickle.dumps(transform))(pictures(fresh, 1)[0]).shape


def test_what_it_costs():
    transform = Transform("photo", backbone=Shrink, **TINY)
    before = torch.get_num_threads()
    cost = transform.cost((24, 16))
    assert torch.get_num_threads() == before
    assert (cost.height, cost.width, cost.nfe, cost.tokens, cost.bits, cost.threads) == (24, 16, 4, 32, 256, 1)
    assert 0 < cost.seconds < 10
    assert "4 network calls" in str(cost)
    assert "1 thread," in str(cost)


def test_pictures_that_it_refuses():
    with pytest.raises(ImageError, match="pixels"):
        Transform("photo", backbone=Shrink, limits=Limits(pixels=100), **TINY)(np.zeros((16, 16, 3), np.uint8))
    for picture in (None, b"no picture", np.zeros((16, 16, 3), np.float32)):
        with pytest.raises(ImageError):
            Transform("photo", backbone=Shrink, **TINY)(picture)
    with pytest.raises(SpecError):
        Transform("photo", backbone=Shrink, **TINY).cost((0, 16))


def test_the_short_name_brings_torch_only_when_used():
    code = """
import inspect, sys
import noisebook.torch as short
from noisebook import torch as also
assert short is also
inspect.getmodule(inspect)  # looks at the files of all modules
assert not hasattr(short, "NoSuchName")  # as pickle asks every module
assert "torch" not in sys.modules, "torch was imported before it was asked for"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_short_name_is_the_module():
    from noisebook.datasets import torch as module

    assert Transform is module.Transform is noisebook.torch.Transform
    assert dir(noisebook.torch) == module.__all__
    assert not hasattr(noisebook.torch, "NoSuchName")


def test_the_stub_has_the_modules_names():
    from noisebook.datasets import torch as module

    stub = Path(noisebook.__file__).with_name("torch.pyi")
    names = [line.split(" as ")[1] for line in stub.read_text().splitlines() if line.startswith("from")]
    assert names == module.__all__


def test_an_aim_takes_the_place_of_the_preset():
    transform = Transform(backbone="gaussian-prior", bpp=1.0, max_nfe=4)
    assert len(transform(np.full((32, 32, 3), 90, np.uint8))) == transform.codec.tokens_per_image((32, 32))
    with pytest.raises(SpecError, match="preset 'photo' has already"):
        Transform("photo", backbone="gaussian-prior", bpp=1.0)(np.zeros((32, 32, 3), np.uint8))
