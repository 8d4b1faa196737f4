"""Limits say their own names, and what they default to."""

import pytest

from noisebook.errors import SpecError, printable
from noisebook.runtime import limits
from noisebook.runtime.limits import Limits, too_much

pytestmark = pytest.mark.quick


def test_a_limit_says_its_option_and_holds_at_its_edge():
    some = Limits(pixels=100)
    assert too_much("it has pixels:", 100, some, "pixels") is None
    assert too_much("it has pixels:", 101, some, "pixels") == (
        "it has pixels: 101, more than the limit of 100: --max-pixels raises it"
    )
    for name in ("pixels", "network_calls", "work", "rows"):
        with pytest.raises(SpecError, match=name):
            Limits(**{name: 0})
    with pytest.raises(SpecError, match="memory"):
        Limits(memory=-1)


def test_memory_defaults_to_half_of_the_machine(monkeypatch):
    monkeypatch.setattr(limits, "machine_memory", lambda: 10 << 30)
    assert Limits().memory_bytes == 5 << 30
    assert Limits(memory=123).memory_bytes == 123


@pytest.mark.parametrize("text", ["plain", "ä 日本 😀", "a b"])
def test_text_that_only_says_something_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\0", "a\\x0ab\\x0d\\x00"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff", "\\udcff"),
        ("\u3164", "\\u3164"),
    ],
)
def test_text_that_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable("x" * 1000, 10) == "xxxxxxxxxx... (1,000 characters)"
