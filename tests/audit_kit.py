"""What code opens, contacts, starts and imports, as the interpreter's audit hook tells it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WATCHED = (
    "open",
    "os.listdir",
    "os.scandir",
    "glob.glob",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "import",
)

_events: list[tuple[str, str]] | None = None
_hooked = False


def _hook(event: str, args: tuple) -> None:
    if _events is not None and event in WATCHED:
        subject = args[1] if event == "socket.connect" else args[0] if args else ""
        _events.append((event, os.fsdecode(subject) if isinstance(subject, (bytes, os.PathLike)) else str(subject)))


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """The (event, what it is about) of the block, as they come."""
    global _events, _hooked
    if not _hooked:  # a hook cannot be taken away again
        sys.addaudithook(_hook)
        _hooked = True
    _events = events = []
    try:
        yield events
    finally:
        _events = None


def touching(events: list[tuple[str, str]], *words: str) -> list[tuple[str, str]]:
    """The events that contact somebody, start something, or are about one of the `words`."""
    return [
        (event, subject)
        for event, subject in events
        if event.startswith(("socket", "subprocess", "os.system")) or any(word in subject for word in words)
    ]
