"""Launch settings: the table's over the defaults, the nearest size, and no table at all."""

import json

import pytest
import torch

from noisebook_kernels import tuning

pytestmark = pytest.mark.quick

DEFAULTS = {"programs": 1056, "entries": 32}
CUDA = torch.device("cuda", 0)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Writes a table; look-ups believe that there is a GPU of capability 9.0."""
    monkeypatch.setattr(tuning, "TABLE", tmp_path / "tuned.json")
    monkeypatch.setattr(tuning, "_capability", lambda index: "90")
    monkeypatch.setattr(tuning, "_table", tuning.read_table)
    return lambda content: (tmp_path / "tuned.json").write_text(json.dumps(content))


def test_a_missing_table_is_an_empty_one(table):
    assert tuning.read_table() == {}
    assert tuning.settings("hadamard", CUDA, DEFAULTS, P=4096, B=64) == DEFAULTS


def test_what_the_table_does_not_know_keeps_its_default(table):
    table({"90": {"hadamard": {"P12 B6": {"programs": 528}}}, "80": {"independent": {"P12 B6": {"programs": 7}}}})
    assert tuning.settings("hadamard", CUDA, DEFAULTS, P=4096, B=64) == DEFAULTS | {"programs": 528}
    assert tuning.settings("independent", CUDA, DEFAULTS, P=4096, B=64) == DEFAULTS
    assert tuning.settings("hadamard", torch.device("cpu"), DEFAULTS, P=4096, B=64) == DEFAULTS


def test_the_nearest_size_answers(table):
    table({"90": {"hadamard": {"P12 B0": {"programs": 1}, "P12 B6": {"programs": 2}, "P8 B6": {"programs": 3}}}})
    for sizes, programs in (((3072, 2), 1), ((4096, 40), 2), ((4097, 1024), 2), ((1, 64), 3)):
        assert tuning.settings("hadamard", CUDA, DEFAULTS, P=sizes[0], B=sizes[1])["programs"] == programs
