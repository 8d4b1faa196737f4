"""How far an encode or decode has come, in calls of the network.

The loop knows nothing about who listens: `network_called` finds that out. Nothing is reported from inside of a CUDA graph,
which is launched as a whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Tell = Callable[[int, int], None]  # (calls of the network that are done, all that there will be)


class Progress:
    """Calls `tell(0, total)`, then `tell(done, total)` after each of the `calls` network calls of each of the `runs` of a
    walk. A call has a whole batch."""

    def __init__(self, tell: Tell, calls: int, runs: int = 1):
        self.tell, self.calls, self.total, self.done = tell, calls, calls * runs, 0
        self._end = 0  # of the run in progress
        tell(0, self.total)

    @contextmanager
    def run(self, listening: bool) -> Iterator[None]:
        """Around one run of a walk. `listening`: its calls are reported one by one; otherwise all of them at its end."""
        self._end = min(self.done + self.calls, self.total)
        token = _listener.set(self if listening else None)
        try:
            yield
        finally:
            _listener.reset(token)
        if self.done < self._end:
            self._advance(self._end)

    def called(self) -> None:
        """One call more."""
        if self.done < self._end:
            self._advance(self.done + 1)

    def _advance(self, done: int) -> None:
        self.done = done
        self.tell(done, self.total)


_listener: ContextVar[Progress | None] = ContextVar("_listener", default=None)


def network_called() -> None:
    """Reports to the listener, if there is one, that the network has answered once more."""
    listener = _listener.get()
    if listener is not None:
        listener.called()


__all__ = ["Progress", "Tell", "network_called"]
