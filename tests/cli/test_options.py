"""Options that several verbs share."""

import argparse

import pytest

from noisebook.cli import options
from noisebook.errors import SpecError
from noisebook.runtime.limits import OPTIONS, Limits

pytestmark = pytest.mark.quick


def parsed(*argv: str, names: tuple[str, ...] = tuple(options.LIMITS)) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_limits_of_files(parser, *names)
    options.add_force(parser)
    parser.add_argument(OPTIONS["memory"], type=options.size_of)
    return parser.parse_args(argv)


def test_limits_are_those_of_the_options_and_the_defaults():
    assert options.limits_of(parsed()) == Limits()
    assert options.limits_of(parsed(names=("pixels",))) == Limits()
    given = parsed("--max-pixels", "7", "--max-network-calls", "6", "--max-work", "5", "--max-rows", "4", "--memory", "3K")
    assert options.limits_of(given) == Limits(7, 6, 5, 4, 3072)
    assert not parsed().force
    assert parsed("--force").force


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "\u0663", "", "9" * 5000, "0x10"])
def test_a_limit_is_a_whole_number(text, capsys):
    with pytest.raises(SystemExit):
        parsed(f"--max-pixels={text}")
    assert "is no whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2 tb", 2 * 10**12), ("1kb", 1000), ("7B", 7)],
)
def test_sizes_are_bytes(text, size):
    assert options.size_of(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "0", "4X", "1iB", "1e9", "9" * 19, "99999999T", "\u0663G", "0.1", "4G G"])
def test_what_is_no_size_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        parsed(f"--memory={text}")
    assert "is no size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tokens", "10"], r"--tokens \(in Python: noisebook.load\(tokens=, size=, curve=\)\)$"),
        (["--steps", "3"], "--steps$"),
    ],
)
def test_a_schedule_of_a_curve_of_ones_own_takes_no_tokens_and_says_who_does(more, said):
    parser = argparse.ArgumentParser()
    options.add_codec_options(parser)
    options.add_target_options(parser)
    with pytest.raises(SpecError, match=f"--curve makes its own schedule: .*, not with {said}"):
        options.aim_of(parser.parse_args(["--curve", "mine.curve.json", *more]), "curve")
