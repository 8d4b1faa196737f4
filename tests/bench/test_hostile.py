"""A seeded sample of bench/reliability/hostile.py: what files from strangers can do. Linux only: /proc is read."""

import subprocess
import sys

import pytest

from common import ROOT

pytest.importorskip("pyarrow")
if not sys.platform.startswith("linux"):
    pytest.skip("forks, and looks into /proc", allow_module_level=True)


def test_300_hostile_inputs_of_all_kinds_run_nothing_and_are_refused_in_words():
    """In a process of its own, which forks: the threads of this one must not be in the children."""
    command = [sys.executable, "-m", "bench.reliability.hostile", "--count", "30", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.count("'inputs': 30, ") == 10
