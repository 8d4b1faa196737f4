"""Pictures from files, decoded in worker processes that may die, while the codec works on the ones before."""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple

import numpy as np

from noisebook.datasets import memory
from noisebook.datasets.decoding import Later, Picture, Request, answer_to
from noisebook.datasets.slab import slab_for
from noisebook.datasets.sources.base import Failure
from noisebook.datasets.worker import Parcel, Placed, Sent, serve, watch_parent
from noisebook.errors import DatasetError, first_line
from noisebook.runtime.limits import DEFAULT, Limits

FIRST, CHUNK = 8, 64  # items in one call of a worker, at first and at most: a call costs more than to decode a small picture
CHUNK_BYTES = 1 << 20  # of their files; then they are sent, however few
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
        parts = 2 * count + 3  # those in flight, one that is looked at, one that is sent again
        self._slab = slab_for(parts, memory.waiting_bytes(limits)) if count else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._end(kill=kind is not None)  # an error does not wait for a worker that may hang
        if self._slab is not None:
            self._slab.close()
            self._slab = None

    @property
    def ahead(self) -> int:
        """Chunks in flight at most while another is sent."""
        return 2 * self.count if self.at_once == self.count else self.at_once - 1

    def map(self, requests: Iterable[Request]) -> Iterator[Picture | Failure]:
        """An answer for each request, in order. Raises DatasetError where no worker can be started."""
        for answer in self.blocks(requests):
            if isinstance(answer, Failure):
                yield answer
                continue
            for planes in answer.planes:
                yield Picture(planes.transpose(1, 2, 0).copy(), answer.height, answer.width, answer.remarks)

    def blocks(self, requests: Iterable[Request]) -> "Iterator[Block | Failure]":
        """As `map`, but pictures that follow each other and differ in their pixels only come together. The pixels are there
        only until the next block is asked for, and nobody may write to them."""
        waiting = memory.waiting_bytes(self.limits) // (2 * self.count + 1)
        if not self.count:
            for request in requests:
                answer = answer_to(request, by_planes=True)
                assert not isinstance(answer, Later)
                yield self._shown(answer)
            return
        in_flight: deque[Flight] = deque()
        for chunk in _chunks(requests, self.count, min(CHUNK_BYTES, waiting)):
            while len(in_flight) > self.ahead:
                yield from self._first(in_flight)
            in_flight.append(self._sent(chunk))
        while in_flight:
            yield from self._first(in_flight)

    def _sent(self, chunk: list[Request]) -> "Flight":
        part = self._slab.free.pop() if self._slab is not None and self._slab.free else None
        return Flight(chunk, self._submit(chunk, None, part), part)

    def _submit(self, chunk: list[Request], at_once: int | None = None, part: int | None = None) -> Future:
        at_once = at_once or self.at_once
        share = memory.decoded_pixels(self.limits) // at_once if at_once > 1 else None
        answered = memory.waiting_bytes(self.limits) // (self.ahead + 1)
        place: tuple[int, int] | None = None
        if part is not None and self._slab is not None:
            place, answered = (part * self._slab.size, self._slab.size), min(answered, self._slab.size)
        try:
            return self._started().submit(serve, Parcel.of(chunk), share, answered, place)
        except (BrokenProcessPool, EOFError, OSError) as error:  # a worker, or what starts them, died between two chunks:
            broken: Future = Future()  # whoever waits for this one will see it
            broken.set_exception(BrokenProcessPool(str(error)))
            if isinstance(error, OSError):  # what starts them was killed: it refuses before the system knows that it is dead
                time.sleep(PAUSE)
            return broken

    def _result(self, future: Future) -> list[Sent]:
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

    def _first(self, in_flight: "deque[Flight]") -> "Iterator[Block | Failure]":
        """The answers to the first chunk, or to its first requests; then the others are sent again. If they are lost, its
        requests are sent one by one, and other chunks again."""
        flight = in_flight.popleft()
        chunk = flight.chunk
        try:
            answers = self._result(flight.future)
        except (*LOST, FutureTimeout):
            self._end(kill=True)
            self._free(flight)
            others = [(other, _failed(other.future)) for other in in_flight]
            by_themselves = [self._by_itself(request) for request in chunk]
            in_flight.clear()
            for other, failed in others:
                if failed:
                    self._free(other)
                in_flight.append(self._sent(other.chunk) if failed else other)
            yield from map(self._shown, by_themselves)
            return
        done = _before_later(answers)
        if len(done) < len(answers):
            large = answers[len(done)]
            assert isinstance(large, Later)
            self._make_room(large, in_flight)
        count = sum(answer.count if isinstance(answer, Placed) else 1 for answer in done)
        if count < len(chunk):
            in_flight.appendleft(self._sent(chunk[count:]))
        yield from map(self._shown, done)
        self._free(flight)

    def _shown(self, answer: Picture | Failure | Placed) -> "Block | Failure":
        if isinstance(answer, Failure):
            return answer
        if isinstance(answer, Picture):
            return Block(answer.pixels.transpose(2, 0, 1)[None], *answer[1:])
        assert self._slab is not None
        return Block(self._slab.planes(answer.start, answer.count, answer.shape), *answer[3:])

    def _free(self, flight: "Flight") -> None:
        """Nobody writes to the flight's part of the slab any more, nor reads it."""
        if flight.part is not None and self._slab is not None:
            self._slab.free.append(flight.part)

    def _make_room(self, large: Later, in_flight: "deque[Flight]") -> None:
        """So many workers from now on that each may decode such a picture, when those in flight are done."""
        self.at_once = max(1, min(self.at_once - 1, memory.decoded_pixels(self.limits) // large.pixels))
        wait([flight.future for flight in in_flight], self.patience)

    def _by_itself(self, request: Request) -> Picture | Failure:
        for _ in range(TRIES):  # the worker may have died of something else, or been killed from outside
            try:
                answer = self._result(self._submit([request], 1))[0]
                assert not isinstance(answer, Later | Placed)
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
            self._pool = ProcessPoolExecutor(self.count, context, initializer=watch_parent, initargs=(self._slab,))
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


class Block(NamedTuple):
    """Pictures that follow each other: their pixels, uint8 [N, C, H, W], and what `Picture` says of each of them."""

    planes: np.ndarray
    height: int
    width: int
    remarks: tuple[str, ...]

    def after(self, count: int) -> "Block | None":
        """Those after the first `count`."""
        return self._replace(planes=self.planes[count:]) if count < len(self.planes) else None


@dataclass
class Flight:
    """Requests that were sent, what will be answered, and the part of the slab that is theirs until that was looked at."""

    chunk: list[Request]
    future: Future
    part: int | None


def _before_later(answers: list[Sent]) -> list[Picture | Failure | Placed]:
    """Those before the first Later."""
    done: list[Picture | Failure | Placed] = []
    for answer in answers:
        if isinstance(answer, Later):
            break
        done.append(answer)
    return done


def _failed(future: Future) -> bool:
    """Whether an answer was lost with its process: it has not come, or never will."""
    return not future.done() or future.cancelled() or future.exception() is not None


def _chunks(requests: Iterable[Request], workers: int, size: int) -> Iterator[list[Request]]:
    """Up to `CHUNK` requests, or fewer whose files have `size` bytes together. At first they are fewer, so that each worker
    has something to do soon."""
    chunk: list[Request] = []
    held, count, made = 0, FIRST, 0
    for request in requests:
        chunk.append(request)
        held += request.bytes_there
        if len(chunk) >= count or held >= size:
            yield chunk
            chunk, held, made = [], 0, made + 1
            count = min(CHUNK, FIRST << min(made // workers, 8))
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
