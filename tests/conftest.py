"""Fixtures shared by all tests."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, and what they start, have a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("NOISEBOOK_CACHE", "off")  # tests write nothing into the home of who runs them

import numpy as np
import pytest
import torch

from common import ROOT, Shrink

if not torch.cuda.is_available():  # Triton reads it when its own library is imported, which other libraries may do first
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def shrink() -> Shrink:
    return Shrink()


@pytest.fixture
def fresh(request) -> np.random.Generator:
    """A generator with a new seed every run; the seed is printed when a test fails."""
    seed = int(os.environ.get("NOISEBOOK_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    request.node.add_report_section("setup", "fresh random input", f"NOISEBOOK_TEST_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.fixture
def poisoned(monkeypatch):
    """Whatever torch.empty returns is full of values that no kernel should leave standing."""
    empty = torch.empty

    def filled(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min + 1)

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images; tests that need it skip where it is absent."""
    path = Path(os.environ.get("NOISEBOOK_DATA", ROOT.parent / "shared/data"))
    if not path.is_dir():
        pytest.skip("no real images: set NOISEBOOK_DATA")
    return path
