"""The walls of ARCHITECTURE.md hold: what may import what, and how high the house is."""

import shutil
from pathlib import Path

import pytest
from walls import TYPED, House, picture, violations

from common import ROOT

pytestmark = pytest.mark.quick

PACKAGE = ROOT / "engine/noisebook"
ROWS = picture((ROOT / "ARCHITECTURE.md").read_text())


@pytest.fixture(scope="module")
def house() -> House:
    return House(PACKAGE)


def test_the_picture_has_every_room_and_no_other(house):
    drawn = [room for row in ROWS for room in row]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == house.rooms


def test_the_walls_hold(house):
    assert not violations(house, ROWS)


def test_one_line_imports_what_a_user_typed(house):
    lines = [(module, item.line) for module, imports in house.imports.items() for item in imports if "*" in item.name]
    assert [module for module, _ in lines] == sorted(TYPED)


def test_the_house_is_small(house, capsys):
    """At most 14 rooms on 10 floors, no circle of rooms (`floors` raises) nor of files."""
    floors = house.floors()
    with capsys.disabled():
        print(f"\nrooms {len(house.rooms)}, floors {floors}, arrows {len(house.arrows)}, circles {len(house.circles())}")
    assert len(house.rooms) <= 14
    assert floors <= 10
    assert not house.circles()


def test_top_folders_are_not_packages_and_the_package_is_typed():
    for folder in ("engine", "kernels", "csrc", "bench", "examples", "tests"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists()  # a package `kernels` breaks diffusers
    for package in ("engine/noisebook", "kernels/noisebook_kernels"):
        assert (ROOT / package / "py.typed").exists()


# one violation of each kind: where it is planted, what is planted, and a word of what must be said
PLANTED = {
    "a room that imports one above it": ("spec/schedule.py", "from noisebook.codec import codec", "not below it"),
    "inside a function": ("rules/top.py", "def f():\n    from noisebook.codec.walk import walk", "not below it"),
    "for type checking": (
        "format/runs.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from noisebook.spec.spec import CodecSpec",
        "not below it",
    ),
    "a relative import": ("runtime/atomic.py", "from ..images import io", "not below it"),
    "a relative import of the package": ("runtime/atomic.py", "from .. import images", "not below it"),
    "from the package": ("codebook/reference.py", "from noisebook import codec", "not below it"),
    "the package and its attribute": ("backbones/base.py", "import noisebook\nx = noisebook.codec", "not below it"),
    "the package under another name": ("backbones/base.py", "import noisebook as nb\nx = nb.codec", "not below it"),
    "import_module": (
        "images/io.py",
        'import importlib\nx = importlib.import_module("noisebook.datasets.run")',
        "not below it",
    ),
    "__import__": ("images/io.py", 'x = __import__("noisebook.datasets.run")', "not below it"),
    "a name made at run time": (
        "backbones/base.py",
        'from importlib import import_module\ndef f(name):\n    return import_module(f"noisebook.{name}")',
        "made at run time",
    ),
    "a name made at run time, where one that a user typed is imported": (
        "backbones/factory.py",
        'def f(name):\n    return import_module(f"noisebook.{name}")',
        "made at run time",
    ),
    "the front door": ("datasets/store.py", "from noisebook import load", "front door"),
    "the front door's attribute": ("datasets/store.py", "import noisebook\nx = noisebook.load", "front door"),
    "the front door in haste": ("__init__.py", "from noisebook.codec import load as loading", "before it is asked"),
    "rooms of one row": ("rules/top.py", "from noisebook.codebook import Codebook", "not below it"),
    "a circle in a folder": ("datasets/ledger.py", "def f():\n    from noisebook.datasets import run", "a circle of files"),
    "argparse": ("datasets/run.py", "import argparse", "argparse outside cli"),
    "argparse, a part of it": ("training/loop.py", "from argparse import Namespace", "argparse outside cli"),
    "torch in spec": ("spec/curve.py", "def f():\n    import torch", "torch in spec"),
    "torch in format": ("format/entropy.py", "from torch import Tensor", "torch in format"),
    "torch in a rule": ("rules/bins.py", "import torch", "torch at module level of a rule"),
    "the kernels": ("codec/packing.py", "def f():\n    import noisebook_kernels", "kernels are the codebook's"),
    "a new room": ("attic/junk.py", "x = 1", "the picture does not have"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_every_kind_of_violation_is_seen(kind, house, tmp_path):
    file, code, word = PLANTED[kind]
    folder = tmp_path / "noisebook"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("*.so", "*.safetensors", "__pycache__"))
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + f"\n\n{code}\n")
    before = {_plain(line) for line in violations(house, ROWS)}
    seen = [line for line in violations(House(folder), ROWS) if _plain(line) not in before]
    assert any(word in line for line in seen), f"not seen: {kind}"


def _plain(line: str) -> str:
    """A violation without its line number."""
    return "".join(c for c in line if not c.isdigit())


def test_kernels_know_nothing_of_the_engine_and_nothing_imports_bench_tests_or_tools():
    kernels = House(ROOT / "kernels/noisebook_kernels")
    for package, folder in ((kernels, "kernels"), (House(PACKAGE), "engine")):
        for module, imports in package.imports.items():
            for item in imports:
                top = item.name.split(".")[0]
                assert not (folder == "kernels" and top == "noisebook"), f"{module}:{item.line}"
                assert top not in ("bench", "examples", "tests", "tools", "common", "record"), f"{module}:{item.line}"
    for path in (ROOT / "csrc").iterdir():
        text = path.read_text()
        assert not any(word in text for word in ("#include <torch", "#include <ATen", "#include <c10", "torch::", "at::")), (
            path
        )


@pytest.mark.parametrize("folder", ["engine", "kernels"])
def test_modules_fit_a_head(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, f"{path} is too long"


def test_the_formatter_and_the_type_checker_have_few_exceptions():
    """Counted over all Python files: at most 30 places that the formatter leaves alone; in the package at most 12 that the
    type checker does."""
    words = ("# fmt: skip", "# fmt: off", "type: ignore", "pyright: ignore", " cast(")
    counts = dict.fromkeys(words, 0)
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("engine", "kernels", "bench", "tests", "tools", "examples", "docs", "setup.py"):
            text = "" if path == Path(__file__) else path.read_text()
            for word in words[:2]:
                counts[word] += text.count(word)
            if parts[0] in ("engine", "kernels"):
                for word in words[2:]:
                    counts[word] += text.count(word)
    assert counts["# fmt: skip"] + counts["# fmt: off"] <= 30
    assert counts["type: ignore"] + counts["pyright: ignore"] + counts[" cast("] <= 12, counts
