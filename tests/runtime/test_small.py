"""Helpers that every room uses."""

import pytest
import torch

from noisebook.errors import first_line
from noisebook.runtime.pixels import from_uint8, to_uint8

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n\n  two "), "two"),
        (ValueError(), "ValueError"),
        (OSError(" \n"), "OSError"),
        (KeyError("k"), "'k'"),
    ],
)
def test_an_error_has_a_first_line_even_where_it_says_nothing(error, line):
    assert first_line(error) == line


def test_no_room_takes_the_first_line_of_an_error_by_hand():
    from common import ROOT

    for path in (ROOT / "engine").rglob("*.py"):
        text = path.read_text()
        assert path.name == "errors.py" or "splitlines()[0]" not in text, path


def test_pixels_go_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    values = from_uint8(pixels)
    assert (values.min(), values.max()) == (-1, 1)
    assert torch.equal(to_uint8(values), pixels)
    assert from_uint8(values) is values


def test_the_memory_of_a_piece_of_work_is_what_it_takes_at_once():
    from noisebook.runtime.peak import peak_bytes

    def work():
        for _ in range(2):
            torch.ones(1 << 23)  # 32 MiB, freed before the next

    found = [peak_bytes(work, torch.device("cpu")) for _ in range(5)]
    if found[0] is None:
        pytest.skip("nobody counts it here")
    assert all(size > 24 << 20 for size in found), found
    assert sum(size < 60 << 20 for size in found) >= 3, found  # what other threads take meanwhile counts, too
    assert peak_bytes(lambda: None, torch.device("meta")) is None


def test_on_cuda_it_is_what_the_allocator_says(monkeypatch):
    from noisebook.runtime.peak import peak_bytes

    calls = []
    for name, value in (("synchronize", None), ("memory_allocated", 5), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda device, n=name, v=value: (calls.append(n), v)[1])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12)
    assert peak_bytes(lambda: calls.append("work"), torch.device("cuda")) == 7
    assert calls == ["synchronize", "memory_allocated", "reset_peak_memory_stats", "work", "synchronize"]
