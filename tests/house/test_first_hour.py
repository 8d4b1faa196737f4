"""The README and the tutorial as a stranger has them: their own install line in a new environment, then every block in an
empty folder, with nothing of this checkout or of the environment of the tests in sight."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# What the new environment runs. An install is not run again, and the tests of the checkout are another test's.
READER = r"""
import re, subprocess, sys
import noisebook
assert noisebook.__file__.startswith(sys.prefix), noisebook.__file__
scope = {"__name__": "page"}
for language, text in re.findall(r"```(\w+)\n(.*?)```", open(sys.argv[1]).read(), re.DOTALL):
    if language == "python":
        exec(compile(text, sys.argv[1], "exec"), scope)
    elif language == "bash":
        for line in text.splitlines():
            if line := re.sub(r"^pip install \.( && |$)", "", line.partition("#")[0].strip()):
                if not line.startswith("pip install -e"):
                    print("$", line, flush=True)
                    subprocess.run(line, shell=True, check=True)
"""


def outside() -> dict[str, str]:
    """The environment without what leads back to this checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """bin/ of an environment that the tutorial's install line made, in a copy of the checkout."""
    folder = tmp_path_factory.mktemp("first-hour")
    tree = folder / "checkout"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", "*.so", "bench", "tests", "site", "build", "*.egg-info")
    )
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (line,) = re.findall("^pip install .*$", (ROOT / "docs/tutorial.md").read_text(), re.MULTILINE)
    bin = folder / "venv/bin"
    env = outside() | {"PATH": f"{bin}:{os.environ['PATH']}"}
    done = subprocess.run(line, shell=True, cwd=tree, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bin


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_every_block_runs_after_the_install_line_of_the_page(installed, page, tmp_path):
    env = outside() | {"PATH": f"{installed}:{os.environ['PATH']}"}
    command = [installed / "python", "-c", READER, str(ROOT / page)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("$ noisebook") > 3


def test_only_what_is_installed_is_needed(installed):
    """No library is there by accident: what the plain install brings is what pyproject.toml says and needs itself."""
    done = subprocess.run([installed / "pip", "check"], env=outside(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for module in ("diffusers", "ray", "lpips", "pytest"):
        there = subprocess.run([installed / "python", "-c", f"import {module}"], env=outside(), capture_output=True)
        assert there.returncode, f"{module} belongs to an extra"
