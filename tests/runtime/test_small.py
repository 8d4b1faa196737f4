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
