"""docs/tutorial.md: every block of it runs, in order, in one empty folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common import ROOT

PAGE = ROOT / "docs/tutorial.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(PAGE.read_text())


def run_line(line: str) -> None:
    """One command: `noisebook` in this process, with torch loaded already; nothing else but the installation is known."""
    from noisebook.cli.main import main

    program, *arguments = shlex.split(line)
    if program == "noisebook":
        assert main(arguments) == 0, line
    else:
        assert line == "pip install .", f"the tutorial has a command that this test does not know: {line}"


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


def distance(a, b) -> float:
    return float(np.square(a - b).mean())


def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": "tutorial"}
    for language, text in blocks():
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), scope)
        else:
            for line in text.splitlines():
                run_line(line)
    cat = picture("cat.png")
    flat = distance(cat, cat.mean((0, 1)))
    for name in ("decoded/cat.decoded.png", "again/cat.decoded.png", "mine/cat.decoded.png", "pictures/cat.png"):
        assert distance(cat, picture(name)) < flat / 3, name
    assert distance(cat, picture("decoded/cat.decoded.png")) < distance(cat, picture("coarse/cat.decoded.png")) < flat
    for name in ("out", "low", "fewer", "levels"):
        both = picture(f"{name}/cat.compared.png")
        assert np.array_equal(both[:, :128], cat), name
        assert distance(cat, both[:, 128:]) < flat / 3, name
    assert os.path.getsize("bytes/cat.nbk") <= 1000
    assert os.path.getsize("bpp/cat.nbk") == pytest.approx(0.5 * 96 * 128 / 8, rel=0.1)
    own = (scope["seen"] - scope["original"]).square().mean() * 127.5**2
    assert own < flat / 3, "the page's own backbone carries a picture"


def test_blocks_are_of_two_languages():
    text = PAGE.read_text()
    assert {language for language, _ in blocks()} == {"python", "bash"}
    assert text.count("```") == 2 * len(blocks()), "a fence without a language would not be run"


def test_the_checkout_can_be_installed(tmp_path):
    """`pip install .` as pip sees it before it compiles; test_package.py builds a wheel and runs it."""
    tree = tmp_path / "checkout"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "*.so", "bench", "tests", "docs", "site", "build"))
    (line,) = [line for _, text in blocks() for line in text.splitlines() if line.startswith("pip install")]
    options = ["--dry-run", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([sys.executable, "-m", *shlex.split(line), *options], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
