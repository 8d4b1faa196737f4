"""The registry: what a name leads to, and that a new kind of checkpoint is one entry."""

import subprocess
import sys

import pytest
import torch

from common import Shrink
from noisebook import backbones
from noisebook.backbones import registry
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.errors import BackboneError

pytestmark = pytest.mark.quick


class Toy(Shrink):
    """White images of a stored deviation, of one size where the config says so."""

    def __init__(self, deviation: torch.Tensor, size: tuple[int, int] | None):
        super().__init__()
        self.register_buffer("deviation", deviation)
        self.size, self.unfingerprinted_options = size, ("mood",)
        self.fingerprint = ""


def toy(config, tensors, size=None, mood="good"):
    return Toy(tensors["deviation"], size or config["size"])


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A checkpoint of a kind that is registered for this test."""
    monkeypatch.setitem(registry.KINDS, "toy", toy)
    write_checkpoint(tmp_path / "my-toy.safetensors", "toy", {"size": None}, {"deviation": torch.tensor(0.5)})
    return tmp_path / "my-toy.safetensors"


def test_a_new_kind_is_one_entry(path):
    backbone = backbones.load(path)
    assert isinstance(backbone, Toy)
    assert backbone.name == "my-toy"
    assert len(backbone.fingerprint) == 64
    assert backbones.load(path, mood="bad").fingerprint == backbone.fingerprint  # changes no token
    tiled = backbones.load(path, size=(8, 8))
    assert isinstance(tiled, Tiled)
    assert isinstance(tiled.inner, Toy)
    assert tiled.inner.fingerprint != backbone.fingerprint


def test_an_option_that_the_kind_does_not_know(path):
    with pytest.raises(BackboneError, match=r"my-toy\.safetensors: a backbone of kind 'toy' takes no weather"):
        backbones.load(path, weather="rain")


def test_an_error_of_the_builders_own_is_not_taken_for_an_unknown_option(path, monkeypatch):
    def broken(config, tensors, mood="good"):
        raise TypeError("of its own")

    monkeypatch.setitem(registry.KINDS, "toy", broken)
    with pytest.raises(BackboneError, match=r"do not make a backbone of kind 'toy' \(TypeError: of its own\)"):
        backbones.load(path, mood="bad")


def test_a_kind_that_this_version_does_not_know(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", "of tomorrow", {}, {"x": torch.zeros(1)})
    with pytest.raises(BackboneError, match=r"unknown kind of backbone 'of tomorrow'.*convnet"):
        backbones.load(tmp_path / "a.safetensors")


def test_every_shipped_name_has_weights_of_a_known_kind():
    assert set(registry.VIEWS) <= set(backbones.shipped())
    for name in backbones.shipped():
        weights = registry.VIEWS[name][1] if name in registry.VIEWS else name
        assert read_checkpoint(registry.WEIGHTS / f"{weights}.safetensors")[0] in registry.KINDS


@pytest.mark.parametrize("name", ["photos", "a/b/c", "../x"])
def test_no_such_backbone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match="photo"):
        backbones.load(name)


def test_importing_the_registry_is_light():
    """Every kind is imported, and none of the libraries that only some need."""
    heavy = ("diffusers", "transformers", "huggingface_hub", "triton", "pyarrow", "ray", "scipy")
    code = f"import sys, noisebook.backbones; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
