"""What a file names is a name: only shipped ones are loaded, nothing else is opened, contacted or imported."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from audit_kit import touching, watched

import noisebook
from noisebook import backbones
from noisebook.errors import BackboneError
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec

pytestmark = pytest.mark.quick

NAMES = [
    "owner/evil-model",
    "../evil-model",
    "/evil-model/weights.safetensors",
    "./gaussian-prior",
    "gaussian-prior.safetensors",
    "gaussian-prior\0",
    "gaussian-prior\x1b[2J\n",
    "evil-model" * 1000,
    "*",
    "",
    "Gaussian-Prior",
]


@pytest.fixture
def touched(monkeypatch):
    """The paths whose state is asked for, which is no audit event."""
    paths = []
    for name in ("stat", "lstat"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *a, _plain=plain, **k: (paths.append(path), _plain(path, *a, **k))[1])
    return paths


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_file_opens_nothing_unless_it_is_shipped(name, touched):
    with watched() as events, pytest.raises(BackboneError, match="give --backbone NAME if you trust it") as caught:
        backbones.load_recorded(name)
    assert not touching(events, "evil-model")
    assert not [path for path in touched if not isinstance(path, int) and "evil-model" in os.fsdecode(path)]
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 600
    assert repr(name)[1:20] in said or "\\x" in said


def test_a_specification_loads_only_shipped_names(tmp_path, monkeypatch):
    spec = presets.get("photo").spec
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()  # what is there by that name is not looked at
    for name in ("mine", "owner/evil-model", str(tmp_path / "evil-model")):
        with watched() as events, pytest.raises(BackboneError, match="the file asks for the backbone"):
            noisebook.load(replace(spec, backbone=name))
        assert not touching(events, "evil-model", str(tmp_path))
    assert noisebook.load(spec).spec == spec
    other = replace(spec, backbone="owner/evil-model")
    assert noisebook.load(other, backbone=spec.backbone).spec == other


def test_every_shipped_name_is_loaded():
    for name in backbones.shipped():
        assert backbones.load_recorded(name).name == name


def test_text_of_a_specification_names_no_file(tmp_path):
    spec = replace(presets.get("photo").spec, backbone="owner/evil-model")
    with watched() as events, pytest.raises(BackboneError):
        noisebook.load(CodecSpec.from_json(spec.to_json()))
    assert not touching(events, "evil-model")
