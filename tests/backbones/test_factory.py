"""A backbone by the name of a function: what is typed is imported, what a file names is not, and each fault is one line."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_kit import touching, watched
from PIL import Image

import noisebook
from common import TINY, random_images
from noisebook import backbones
from noisebook.cli.main import main
from noisebook.errors import BackboneError, SpecError
from noisebook.runtime.factories import FORM, is_factory

pytestmark = pytest.mark.quick

MODULE = """
import torch
from torch import nn
from noisebook.backbones import Backbone, fingerprint_of
from noisebook.errors import SpecError

print_of = fingerprint_of({"kind": "mine"}, {})


class Mine(Backbone):
    name, fingerprint = "mine", print_of

    def denoise(self, y, sigma, cond=None):
        return y * (0.25 / (0.25 + sigma * sigma))


class Fixed(Mine):
    name, size = "fixed", (16, 16)


class Inner:
    @staticmethod
    def make():
        return Mine()


def unnamed():
    backbone = Mine()
    backbone.name = Backbone.name
    return backbone


def naked():
    backbone = Mine()
    backbone.fingerprint = ""
    return backbone


def fails():
    raise ValueError("no weights at\\n/nowhere")


def refuses():
    raise SpecError("two steps at least")


def leaves():
    raise SystemExit(3)


def wants(path):
    return Mine()


def forgets():
    Mine()


def network():
    return nn.Linear(2, 2)


def odd():
    return 7


ready = Mine()
"""
LOAD: dict[str, Any] = {"steps": 4, "budget": 8, "vocab_size": 256, "start_budget": 0}


@pytest.fixture
def mine(tmp_path, monkeypatch, request) -> Iterator[str]:
    """The name of a new module in the current folder, which is not on Python's path."""
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    yield name
    sys.modules.pop(name, None)


def test_a_factory_makes_the_backbone_and_python_s_path_stays(mine):
    before = list(sys.path)
    for function, name in (("Mine", "mine"), ("Inner.make", "mine"), ("unnamed", f"{mine}:unnamed")):
        backbone = backbones.load(f"{mine}:{function}")
        assert (backbone.name, backbone.factory) == (name, f"{mine}:{function}")
        assert not backbone.training
    assert sys.path == before


def test_its_codec_is_that_of_the_object(mine, fresh):
    images = random_images(fresh, 2, 16, 16)
    for kind in ("Mine", "Fixed"):  # one size is not tiled: it is the object
        codec = noisebook.load("photo", backbone=f"{mine}:{kind}", **LOAD)
        own = noisebook.load("photo", backbone=getattr(sys.modules[mine], kind)(), **LOAD)
        assert codec.spec == own.spec
        assert (codec.encode(images) == own.encode(images)).all()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("lost", r"has no factory 'lost': it defines Mine, Fixed, Inner, unnamed, naked, fails, refuses, leaves, \.\.\."),
        ("Inner.lost", "has no factory 'Inner.lost'"),
        ("fails", r"fails raised ValueError: no weights at: `python -c 'import mine\w+; mine\w+\.fails\(\)'` shows where"),
        ("refuses", "refuses raised: two steps at least"),
        ("leaves", "leaves raised SystemExit: 3"),
        ("wants", "called without arguments: missing a required argument: 'path': write a function that gives them"),
        ("forgets", "gave a NoneType, not a noisebook.backbones.Backbone: does it return it?"),
        ("network", r"gave a Linear, not .*: put an adapter around the network"),
        ("odd", "gave a int, not .*: derive a class from it"),
        ("ready", "is a Mine, not a factory: name a function"),
        ("print_of", "is a str, not a factory"),
        (
            "naked",
            r"without a fingerprint: it says in every file which weights .*: set backbone.fingerprint = .*fingerprint_of",
        ),
    ],
)
def test_each_fault_is_one_line_that_says_what_to_do(function, said, mine):
    with pytest.raises(BackboneError, match=said) as caught:
        backbones.load(f"{mine}:{function}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("absent", None, "no module 'absent' for the backbone's factory: it is looked for"),
        ("os.absent", None, "no module 'os.absent'"),
        ("broken", "import absent_too", "'broken' .* cannot be imported: ModuleNotFoundError: No module named 'absent_too'"),
        ("broken", "x = (", "cannot be imported: SyntaxError"),
        ("broken", "raise SystemExit('bye')", "cannot be imported: SystemExit: bye"),
        ("broken.py", "x = 1", "no module 'broken.py' .*; without .py: broken"),
    ],
)
def test_a_module_that_is_not_there_or_breaks_is_one_line(module, text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "broken.py").write_text(text)
    with pytest.raises(BackboneError, match=said) as caught:
        backbones.load(f"{module}:make")
    assert str(caught.value).isprintable()
    sys.modules.pop("broken", None)


def test_no_file_of_the_current_folder_hides_an_installed_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text("raise RuntimeError")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(BackboneError, match="'colorsys' has no factory 'make'"):
        backbones.load("colorsys:make")


def test_what_is_there_by_the_name_is_that_file_and_a_factory_takes_no_conditions(mine):
    Path("a:b").write_bytes(b"no checkpoint")
    with pytest.raises(BackboneError, match="a:b"):
        backbones.load("a:b")
    with pytest.raises(BackboneError, match="takes no prompt"):
        backbones.load(f"{mine}:Mine", prompt="a cat")
    with pytest.raises(SpecError):
        backbones.load(f"{mine}:Mine", "nowhere")


@pytest.mark.parametrize(
    "name", ["a:", ":b", "a b:c", "a:b:c", "a-b:c", "./a:b", "a:b()", "1a:b", "C:\\models", "a." * 200 + "b:c", "a:b\n"]
)
def test_other_names_are_no_factories(name):
    assert not is_factory(name)
    assert FORM.fullmatch("a.b:c.d")


def test_a_file_that_names_a_factory_imports_nothing(mine, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "in/a.png")
    typed = ["--backbone", f"{mine}:unnamed"]
    assert main(["encode", "in/a.png", "-o", "out", *typed, *TINY]) == 0
    with watched() as events, pytest.raises(BackboneError, match=f"give --backbone {mine}:unnamed if you trust it"):
        backbones.load_recorded(f"{mine}:unnamed")
    with watched() as more:
        assert main(["decode", "out/a.nbk", "-o", "back"]) == BackboneError.code
    assert f"--backbone {mine}:unnamed" in capsys.readouterr().err
    assert not touching(events + more, mine)
    assert main(["decode", "out/a.nbk", "-o", "back", *typed]) == 0
    assert os.listdir("back") == ["a.decoded.png"]


def test_a_data_set_says_which_factory_to_give_and_never_imports_it(mine, tmp_path, fresh, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("fsspec")
    (tmp_path / "in").mkdir()
    for i, image in enumerate(random_images(fresh, 3, 16, 16).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / f"in/{i}.png")
    typed = ["--backbone", f"{mine}:Mine"]
    begin = ["tokenize", "in", "-o", "tokens", "--workers", "0", "--shard-size", "2", *TINY]
    assert main([*begin, *typed]) == 0
    assert f'"factory": "{mine}:Mine"' in Path("tokens/plan.json").read_text()
    sys.modules.pop(mine)
    capsys.readouterr()
    for command, code in (
        (["detokenize", "tokens", "-o", "back"], BackboneError.code),
        (["report", "tokens"], BackboneError.code),
        ([*begin, "--resume"], 7),
    ):
        with watched() as events:
            assert main(command) == code, command
        assert f"--backbone {mine}:Mine" in capsys.readouterr().err
        assert not touching(events, mine)
    assert mine not in sys.modules
    assert main(["detokenize", "tokens", "-o", "back", *typed]) == 0
    assert main(["report", "tokens", *typed]) == 0
    assert f"<code>--backbone {mine}:Mine</code>" in Path("report.html").read_text()
    assert main([*begin, "--resume", *typed]) == 0


@pytest.mark.parametrize("text", ['"a b"', '"mine:make\\u001b[2J"', "7", '"<script>:x"'])
def test_a_plan_whose_factory_cannot_be_one_is_damaged(text, mine, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("fsspec")
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "a.png")
    assert main(["tokenize", "a.png", "-o", "tokens", "--workers", "0", "--backbone", f"{mine}:Mine", *TINY]) == 0
    plan = Path("tokens/plan.json")
    plan.write_text(plan.read_text().replace(f'"{mine}:Mine"', text))
    assert main(["detokenize", "tokens", "-o", "back"]) == 4
    assert "its plan is damaged (a factory that is no MODULE:FACTORY)" in capsys.readouterr().err
