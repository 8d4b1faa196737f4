"""CUDA graphs: a function of tensors is recorded once for each set of shapes, then replayed with one launch.

What a function must keep to: no host synchronisation, no copy from the host, the same work whatever the values. A graph
knows its tensors by address. Inputs are copied into buffers of the graph's own, results out of them; tensors that live in
a cache are made by `graph_cached`, so that a graph keeps those it was recorded with.
"""

import contextlib
import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from noisebook.errors import first_line
from noisebook.runtime.profiler import stage

Given = ParamSpec("Given")
Made = TypeVar("Made")
Work = Callable[..., tuple[Tensor, ...]]

WARMUPS = 2  # plain calls before a recording: the first compiles, tunes and fills caches, the second finds all that done
_recordings: list[list[Any]] = []  # for each recording in progress, the constants it was handed
_broken: list[Any] = []  # graphs whose recording failed: torch's allocator goes on asking them, so they stay alive
_lock = threading.RLock()  # one recording at a time in a process, one replay at a time in a graph's buffers


def graph_cached(size: int = 8) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A cache, as functools.lru_cache, for functions that make tensors of hashable arguments (sizes, a device).

    A tensor that leaves the cache stays alive as long as a graph that was recorded with it."""

    def decorate(make: Callable[Given, Made]) -> Callable[Given, Made]:
        cached = functools.lru_cache(size)(torch.inference_mode(False)(make))  # else a first call there spoils the cache

        @functools.wraps(make)
        def get(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            made = cached(*args, **kwargs)  # type: ignore[arg-type]
            for held in _recordings:
                held.append(made)
            return made

        return get

    return decorate


@contextlib.contextmanager
def holding() -> Iterator[list[Any]]:
    """Collects the constants that are handed out inside the `with` block."""
    held: list[Any] = []
    _recordings.append(held)
    try:
        yield held
    finally:
        _recordings.pop()


class Recording:
    """One function recorded on inputs of fixed shapes: its graph and every tensor that the graph knows by address."""

    def __init__(self, function: Work, inputs: list[Tensor], pool: Any, stream: Any):
        self.inputs, self.graph = inputs, torch.cuda.CUDAGraph()
        # thread_local: what other threads do on the device, such as loading the next images, does not break a recording
        options = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        try:
            with holding() as self.held, torch.cuda.graph(self.graph, **options):
                self.outputs = function(*inputs)
        except BaseException:
            self.graph.reset()
            _broken.append(self.graph)
            raise

    def __call__(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for static, tensor in zip(self.inputs, tensors, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Graphs:
    """Calls functions as CUDA graphs: recorded at the first call with new arguments or shapes, replayed from then on.

    Without CUDA tensors, when not `enabled`, and after a recording has failed (one warning), functions are called
    plainly. The `size` graphs used last are kept; they share one memory pool. Calls from several threads or streams take
    turns. Results are tensors of the caller's own.

    version  of the weights: where it changes, they are elsewhere, and a recording that knows the old addresses is not used
    """

    def __init__(self, enabled: bool = True, version: Callable[[], Hashable] = lambda: 0, size: int = 8):
        self.enabled, self.version, self.size = enabled, version, size
        self._recorded: OrderedDict[Hashable, Recording] = OrderedDict()
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(self, function: Work, arguments: tuple[Hashable, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """function(*arguments, *tensors). A recording is known by the function, by these same arguments, and by the
        shapes and dtypes of the tensors: a call and its key cannot differ."""
        if not (self.enabled and self.takes(tensors)):
            return function(*arguments, *tensors)
        device = tensors[0].device
        with _lock, torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            if device != self._device:
                self._forget(device)
            key = (function, arguments, self.version(), *((t.shape, t.dtype) for t in tensors))
            recording = self._recorded.get(key) or self._record(functools.partial(function, *arguments), tensors, key)
            if recording is None:
                return function(*arguments, *tensors)
            self._recorded.move_to_end(key)
            current = torch.cuda.current_stream()
            current.wait_event(self._done)  # of the call before, which may be on another stream
            with stage("replay"):
                outputs = recording(tensors)
            self._done.record(current)
            return outputs

    @staticmethod
    def takes(tensors: tuple[Tensor, ...]) -> bool:
        """Whether there is a graph to be made of work on such tensors."""
        return all(t.is_cuda for t in tensors)

    def _forget(self, device: torch.device) -> None:
        self._recorded.clear()
        self._device, self._stream, self._done = device, torch.cuda.Stream(), torch.cuda.Event()

    def _record(self, function: Work, tensors: tuple[Tensor, ...], key: Hashable) -> Recording | None:
        """Warms up and records; None, with a warning, where the work cannot be recorded."""
        inputs = [torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t) for t in tensors]
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARMUPS):
                function(*inputs)  # what goes wrong here is the function's own and goes to the caller
        current.wait_stream(self._stream)
        if not self._recorded:
            self._pool = torch.cuda.graph_pool_handle()  # a pool lives as long as the graphs in it
        try:
            with torch.cuda.stream(current):  # a recording that fails leaves its own stream behind
                recording = Recording(function, inputs, self._pool, self._stream)
        except Exception as error:  # torch raises several types; whatever it was, the plain call does the work
            cause: BaseException = error
            while cause.__context__ is not None:  # what broke the recording, not that it could not be ended
                cause = cause.__context__
            reason = first_line(cause)
            warnings.warn(
                f"the work cannot be recorded as a CUDA graph and runs without from now on: {reason}",
                RuntimeWarning,
                stacklevel=3,
            )
            self.enabled = False
            self._recorded.clear()
            return None
        self._recorded[key] = recording
        if len(self._recorded) > self.size:
            self._recorded.popitem(last=False)
        return recording


__all__ = ["Graphs", "graph_cached", "holding"]
