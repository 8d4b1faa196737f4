"""The script that compares two checkouts: equal ones are equal, and a planted change is reported where it acts."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from checkout_names import item, words
from common import ROOT
from compare_checkouts import differences

PLANTED = """

def load(*args, **changes):
    from noisebook.codec.load import load as real

    if changes.get("rule") == "top":
        changes["seed"] = 1
    return real(*args, **changes)
"""
ONE = {"rule/top": {"tokens": "ab", "decode": "cd"}, "spacing/log": {"tokens": "ef"}}


def test_every_kind_of_difference_is_a_line():
    assert differences(ONE, {name: dict(facts) for name, facts in ONE.items()}) == []
    other = {**ONE, "rule/top": {"tokens": "ab", "decode": "ce"}}
    assert differences(ONE, other) == ["rule/top: decode: cd in OLD, ce in NEW"]
    other = {**ONE, "rule/top": {"tokens": "ab"}}
    assert differences(ONE, other) == ["rule/top: decode: cd in OLD, nothing in NEW"]
    assert differences(ONE, {**ONE, "x": {}}) == ["x: only in NEW"]
    assert differences({**ONE, "x": {}}, ONE) == ["x: only in OLD"]


def test_options_and_modules_are_found_under_their_older_names():
    @dataclass
    class Old:
        lam_max: float
        bins: int

    @dataclass
    class Between:
        sigma_max: float
        bins: int

    asked = {"sigma_max": 3.0, "budget": 8, "seed": 1}
    assert words(Old, asked) == {"lam_max": 3.0, "bins": 8, "seed": 1}
    assert words(Between, asked) == {"sigma_max": 3.0, "bins": 8, "seed": 1}
    assert item("sha256", "hashlib.newer", "nowhere", "hashlib") is hashlib.sha256
    with pytest.raises(ImportError, match="no sha257 in hashlib"):
        item("sha257", "hashlib")


def test_a_module_that_cannot_import_what_it_needs_is_not_taken_for_an_absent_one(tmp_path, monkeypatch):
    (tmp_path / "half_moved.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        item("sha256", "half_moved", "hashlib")


def compare(old: Path, new: Path, pattern: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/compare_checkouts.py"), str(old), str(new), "--only", pattern]
    return subprocess.run(command, capture_output=True, text=True)


def copy_of_the_checkout(folder: Path) -> Path:
    """A copy of what is imported, with links to the weights."""
    here = ROOT / "engine/noisebook/backbones"
    shutil.copytree(ROOT / "engine", folder / "engine", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (folder / "engine/noisebook/backbones/weights").symlink_to(here / "weights", target_is_directory=True)
    os.symlink(ROOT / "kernels", folder / "kernels", target_is_directory=True)
    return folder


@pytest.mark.slow
def test_a_planted_change_is_reported_where_it_acts_and_nowhere_else(tmp_path):
    copy = copy_of_the_checkout(tmp_path)
    pattern = "rule/[bt]*p=0*"
    done = compare(ROOT, copy, pattern)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"4 cases, 28 hashes: 0 differences in 0 cases\n", done.stdout)
    front = copy / "engine/noisebook/__init__.py"
    whole = front.read_text()
    front.write_text(whole + PLANTED)
    done = compare(ROOT, copy, pattern)
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert all(re.fullmatch(r"rule/top/p=0(\.3)?: [\w ]+: [0-9a-f]{16} in OLD, [0-9a-f]{16} in NEW", line) for line in lines)
    assert len(lines) == 14
    assert last == "4 cases, 28 hashes: 14 differences in 2 cases"
    front.write_text(whole + "\n\ndef load(*args, **changes):\n    raise SpecError('planted')\n")
    done = compare(ROOT, copy, pattern)
    assert done.returncode == 2
    assert "SpecError: planted" in done.stderr
    assert "case rule/top/p=0" in done.stderr
    assert done.stdout.endswith(
        "4 cases more ended with an error, which stands above: rule/bins/p=0, rule/bins/p=0.3, "
        "rule/top/p=0, rule/top/p=0.3\n"
    )


@pytest.mark.slow
def test_a_folder_without_noisebook_is_refused_not_replaced_by_the_installed_one(tmp_path):
    done = compare(tmp_path, ROOT, "spacing/log")
    assert done.returncode == 2
    assert f"{tmp_path}: could not be tried" in done.stdout
