"""What can go wrong, one type each; every message is one line that says what to do. The command line exits with `code`."""


class NoisebookError(Exception):
    """Base of all errors that noisebook raises on purpose."""

    code = 1


class SpecError(NoisebookError, ValueError):
    """A codec specification, schedule or option that is out of range or contradicts itself."""

    code = 2


class ImageError(NoisebookError, ValueError):
    """An image that cannot be read, or that the codec cannot take."""

    code = 3


class FormatError(NoisebookError, ValueError):
    """A file that is not a .nbk file, is truncated, or has a flipped bit."""

    code = 4


class CodecMismatchError(NoisebookError):
    """A file or token tensor made by another codec or with another backbone."""

    code = 5


class BackboneError(NoisebookError):
    """A backbone that cannot be found, read, or used as asked."""

    code = 6


class DatasetError(NoisebookError):
    """A data set that is not complete, has changed since it was begun, is of another run, or cannot be reached."""

    code = 7


class TrainingError(NoisebookError):
    """A training run that cannot start, or cannot go on, as asked."""


SALVAGED = 8  # the exit code of a run that made pictures of damaged files, as it was asked to, and had no error


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its first line with text, or the name of its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0], 500) if lines else type(error).__name__


def said(error: BaseException) -> str:
    """An error's type and what it says, in one line; of one that says nothing its type."""
    what, kind = first_line(error), type(error).__name__
    return kind if what == kind else f"{kind}: {what}"


def printable(text: object, most: int = 0) -> str:
    """Text from a file as it can be shown in a message, a table or a log: what a terminal would obey (control characters,
    escapes, marks that turn the direction of text, separators of lines, halves of surrogate pairs) is written as \\xNN or
    \\uNNNN, and what is longer than `most` characters, unless that is 0, is cut."""
    shown = str(text)
    if most and len(shown) > most:
        shown = f"{shown[:most]}... ({len(shown):,} characters)"
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(c if c == " " or (c.isprintable() and c not in OBEYED) else _escaped(c) for c in shown)


OBEYED = frozenset("\u115f\u1160\u3164\uffa0\u2800")  # printable by their category, and yet nothing is seen


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
