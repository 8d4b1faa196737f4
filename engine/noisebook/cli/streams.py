"""Standard streams that may be closed, full, or of an encoding that has not all characters."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class StreamError(Exception):
    """stdout could not take the result. No NoisebookError: what fails is not the picture that a row is about."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Stdout(io.TextIOBase):
    """Python's stdout, or None where it is closed. Characters that its encoding lacks are escaped; what cannot be written
    raises StreamError: code 141 where the reader has gone, as a shell reports it, else 1."""

    def __init__(self, stream: Any):
        self.stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        plain = text if text.isascii() else text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        with self._checked():
            self.stream.write(plain)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            with self._checked():
                self.stream.flush()

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("stdout is closed")
        return self.stream.fileno()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        if self.stream is None:
            raise StreamError("stdout is closed: the result is lost", 1)
        try:
            yield
        except BrokenPipeError as error:
            discard(self.stream, 1)
            raise StreamError("nobody reads stdout any more", 141) from error
        except (OSError, ValueError) as error:  # ValueError: closed by somebody in this process
            discard(self.stream, 1)
            reason = getattr(error, "strerror", None) or error
            raise StreamError(f"stdout cannot be written, and the result is lost: {reason}", 1) from error


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Standard streams that are safe to write to, for the time of one command."""
    _reopen_missing()
    out, err = sys.stdout, sys.stderr
    sys.stdout = Stdout(out)
    with contextlib.ExitStack() as stack:
        if err is None:  # progress bars and libraries write there, too
            sys.stderr = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


def discard(stream: Any, descriptor: int) -> None:
    """Drops what a stream of this process still holds and could not write: the end of the interpreter tries again, and
    would change the exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if stream.fileno() == descriptor:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def _reopen_missing() -> None:
    """Gives closed descriptors 0 to 2 to the null device: the next file that is opened would get one, and with it the
    prints of whatever library writes there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                if (null := os.open(os.devnull, os.O_RDWR)) != descriptor:
                    os.dup2(null, descriptor)
                    os.close(null)
                os.set_inheritable(descriptor, True)
