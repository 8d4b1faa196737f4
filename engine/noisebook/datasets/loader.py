"""Pictures from files, decoded in worker processes that may die, while the codec works on the ones before."""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import wait as wait_for
from typing import Any

from noisebook.datasets import memory
from noisebook.datasets.decoding import Answer, Later, Picture, Request, serve, watch_parent
from noisebook.datasets.sources.base import Failure
from noisebook.errors import DatasetError, first_line
from noisebook.runtime.limits import DEFAULT, Limits

CHUNK = 8  # items in one call of a worker: small pictures cost more to send than to decode
PAUSE = 0.5  # seconds
LOOK = 1.0  # seconds between two looks whether a worker is dead
TRIES = 2  # workers that may die while they have one request only, before it is blamed
LOST = (BrokenProcessPool, CancelledError)  # the request will not be answered
PATIENCE = 120.0  # seconds after which a worker that answers nothing counts as dead


class Workers:
    """Decodes requests in order, in `count` processes (0: in this one), a few chunks ahead.

    A process that dies takes the whole pool with it. The requests in flight are then sent again one by one, so that the one
    that kills is found, and becomes a Failure. Large pictures are decoded by fewer workers at once, as `limits.memory` says:
    the first that is larger than a worker's share waits until the others are done, and from then on fewer are in flight."""

    def __init__(self, count: int, patience: float = PATIENCE, limits: Limits = DEFAULT):
        self.count, self.patience, self.limits = count, patience, limits
        self.at_once = count  # workers that may be at work
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._end(kill=kind is not None)  # an error does not wait for a worker that may hang

    @property
    def ahead(self) -> int:
        """Chunks in flight at most while another is sent."""
        return 2 * self.count if self.at_once == self.count else self.at_once - 1

    def map(self, requests: Iterable[Request]) -> Iterator[Picture | Failure]:
        """An answer for each request, in order. Raises DatasetError where no worker can be started."""
        waiting = memory.waiting_bytes(self.limits) // (2 * self.count + 1)
        chunks = _chunks(requests, CHUNK if self.count else 1, waiting)
        if not self.count:
            for chunk in chunks:
                yield from _pictures(serve(chunk))
            return
        in_flight: deque[tuple[list[Request], Future]] = deque()
        for chunk in chunks:
            while len(in_flight) > self.ahead:
                yield from self._first(in_flight)
            in_flight.append((chunk, self._submit(chunk)))
        while in_flight:
            yield from self._first(in_flight)

    def _submit(self, chunk: list[Request], at_once: int | None = None) -> Future:
        at_once = at_once or self.at_once
        share = memory.decoded_pixels(self.limits) // at_once if at_once > 1 else None
        answered = memory.waiting_bytes(self.limits) // (self.ahead + 1)
        try:
            return self._started().submit(serve, chunk, share, answered)
        except (BrokenProcessPool, EOFError, OSError) as error:  # a worker, or what starts them, died between two chunks:
            broken: Future = Future()  # whoever waits for this one will see it
            broken.set_exception(BrokenProcessPool(str(error)))
            if isinstance(error, OSError):  # what starts them was killed: it refuses before the system knows that it is dead
                time.sleep(PAUSE)
            return broken

    def _result(self, future: Future) -> list[Answer]:
        """What a worker answers. Raises FutureTimeout, BrokenProcessPool, CancelledError.

        A worker that was killed while it sent its answer leaves half of it in the pipe, and the pool waits for the rest.
        Therefore this looks itself whether a worker is dead."""
        end, dead = time.monotonic() + self.patience, False
        while True:
            try:
                return future.result(max(0.0, min(LOOK, end - time.monotonic())))
            except FutureTimeout:
                if dead or time.monotonic() >= end:
                    raise BrokenProcessPool("a worker died") if dead else FutureTimeout from None
                processes = list((getattr(self._pool, "_processes", None) or {}).values())
                dead = bool(wait_for([process.sentinel for process in processes], 0))

    def _first(self, in_flight: "deque[tuple[list[Request], Future]]") -> list[Picture | Failure]:
        """The answers to the first chunk, or to its first requests; then the others are sent again. If they are lost, its
        requests are sent one by one, and other chunks again."""
        chunk, future = in_flight.popleft()
        try:
            answers = self._result(future)
        except (*LOST, FutureTimeout):
            self._end(kill=True)
            others = [(other, None if _failed(f) else f) for other, f in in_flight]
            answers = [self._by_itself(request) for request in chunk]
            in_flight.clear()
            in_flight.extend((other, f or self._submit(other)) for other, f in others)
            return answers
        done = _pictures(answers)
        if len(done) < len(answers):
            large = answers[len(done)]
            assert isinstance(large, Later)
            self._make_room(large, in_flight)
        if len(done) < len(chunk):
            rest = chunk[len(done) :]
            in_flight.appendleft((rest, self._submit(rest)))
        return done

    def _make_room(self, large: Later, in_flight: "deque[tuple[list[Request], Future]]") -> None:
        """So many workers from now on that each may decode such a picture, when those in flight are done."""
        self.at_once = max(1, min(self.at_once - 1, memory.decoded_pixels(self.limits) // large.pixels))
        wait([future for _, future in in_flight], self.patience)

    def _by_itself(self, request: Request) -> Picture | Failure:
        for _ in range(TRIES):  # the worker may have died of something else, or been killed from outside
            try:
                answer = self._result(self._submit([request], 1))[0]
                assert not isinstance(answer, Later)
                return answer
            except FutureTimeout:
                self._end(kill=True)
                return Failure("timeout", f"not decoded after {self.patience:g} s")
            except LOST:
                self._end(kill=True)
        self._refuse_if_none_lives()
        return Failure("worker_died", "the process that decodes it dies of it, or of too little memory")

    def _refuse_if_none_lives(self) -> None:
        """Raises DatasetError where workers die without any request: no image is to blame then."""
        error: BaseException | None = None
        for _ in range(TRIES):
            try:
                self._result(self._submit([]))
                return
            except (*LOST, FutureTimeout) as lost:
                self._end(kill=True)
                error = lost
        why = first_line(error) if error else "no answer"
        raise DatasetError(
            f"processes that decode cannot be started ({why}): give them memory, or decode in this process with --workers 0"
        ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
            self._pool = ProcessPoolExecutor(self.count, context, initializer=watch_parent)
        return self._pool

    def _end(self, kill: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((getattr(pool, "_processes", None) or {}).values()) if kill else ():
            process.kill()  # one that hangs would be waited for
        if kill and (answers := getattr(pool, "_result_queue", None)) is not None:
            answers._writer.close()  # so that the pool does not wait for the rest of half an answer
        pool.shutdown(wait=True, cancel_futures=True)


def _pictures(answers: list[Answer]) -> list[Picture | Failure]:
    """Those before the first Later."""
    done: list[Picture | Failure] = []
    for answer in answers:
        if isinstance(answer, Later):
            break
        done.append(answer)
    return done


def _failed(future: Future) -> bool:
    """Whether an answer was lost with its process: it has not come, or never will."""
    return not future.done() or future.cancelled() or future.exception() is not None


def _chunks(requests: Iterable[Request], count: int, size: int) -> Iterator[list[Request]]:
    """Up to `count` requests, or fewer whose files have `size` bytes together."""
    chunk: list[Request] = []
    held = 0
    for request in requests:
        chunk.append(request)
        held += request.bytes_there
        if len(chunk) == count or held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def ahead(items: Iterator[Any], depth: int) -> Generator[Any]:
    """The same items, made by a thread that is up to `depth` of them ahead. What it raises is raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(value: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                return ready.put(value, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(("item", item))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # raised again in the thread that waits
            put(("error", error))

    thread = threading.Thread(target=work, name="noisebook-loader", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join(timeout=PATIENCE)
