"""What surrounds the code: what a wheel is made of, citation, workflows, forms and hooks."""

import os
import subprocess
import sys
from pathlib import Path

from common import ROOT

BUILT = (".pyc", ".so", ".pyd", ".dylib")


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix not in BUILT}


def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    """Without the extension, which takes a compiler; test_layout.py builds the whole wheel, by way of the sdist."""
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == files(ROOT / "engine") | files(ROOT / "kernels")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in BUILT]
