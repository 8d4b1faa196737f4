"""Batches of equal size from files, decoded in worker processes that may die, while the codec works on the batch before."""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor

from noisebook.datasets.decoding import Picture, Request, Requests, serve, watch_parent
from noisebook.datasets.sources.base import Failure
from noisebook.errors import DatasetError, first_line

CHUNK = 8  # items in one call of a worker: small pictures cost more to send than to decode
LOOK = 1.0  # seconds between two looks whether a worker is dead
TRIES = 2  # workers that may die while they have one request only, before it is blamed
LOST = (BrokenProcessPool, CancelledError)  # the request will not be answered
PATIENCE = 120.0  # seconds after which a worker that answers nothing counts as dead


class Workers:
    """Decodes requests in order, in `count` processes (0: in this one), a few chunks ahead.

    A process that dies takes the whole pool with it. The requests in flight are then sent again one by one, so that the one
    that kills is found, and becomes a Failure."""

    def __init__(self, count: int, patience: float = PATIENCE):
        self.count, self.patience = count, patience
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._end(kill=kind is not None)  # an error does not wait for a worker that may hang

    def map(self, requests: Iterable[Request]) -> Iterator[Picture | Failure]:
        """An answer for each request, in order. Raises DatasetError where no worker can be started."""
        chunks = _chunks(requests, CHUNK)
        if not self.count:
            for chunk in chunks:
                yield from serve(chunk)
            return
        in_flight: deque[tuple[list[Request], Future]] = deque()
        for chunk in chunks:
            in_flight.append((chunk, self._submit(chunk)))
            if len(in_flight) > 2 * self.count:
                yield from self._first(in_flight)
        while in_flight:
            yield from self._first(in_flight)

    def _submit(self, chunk: list[Request]) -> Future:
        try:
            return self._started().submit(serve, chunk)
        except (BrokenProcessPool, EOFError, OSError) as error:  # a worker, or what starts them, died between two chunks:
            broken: Future = Future()  # whoever waits for this one will see it
            broken.set_exception(BrokenProcessPool(str(error)))
            return broken

    def _result(self, future: Future) -> list[Picture | Failure]:
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
                dead = bool(wait([process.sentinel for process in processes], 0))

    def _first(self, in_flight: "deque[tuple[list[Request], Future]]") -> list[Picture | Failure]:
        """The answers to the first chunk. If they are lost, its requests are sent one by one, and other chunks again."""
        chunk, future = in_flight.popleft()
        try:
            return self._result(future)
        except (*LOST, FutureTimeout):
            self._end(kill=True)
            others = [(other, None if _failed(f) else f) for other, f in in_flight]
            answers = [self._by_itself(request) for request in chunk]
            in_flight.clear()
            in_flight.extend((other, f or self._submit(other)) for other, f in others)
            return answers

    def _by_itself(self, request: Request) -> Picture | Failure:
        for _ in range(TRIES):  # the worker may have died of something else, or been killed from outside
            try:
                return self._result(self._submit([request]))[0]
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


def _failed(future: Future) -> bool:
    """Whether an answer was lost with its process: it has not come, or never will."""
    return not future.done() or future.cancelled() or future.exception() is not None


def _chunks(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    chunk: list[Request] = []
    for request in requests:
        chunk.append(request)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass
class Batch:
    """Images of one size, uint8 [B, C, H, W], and the rows of the shard's items that they are. No images: the shard is
    complete."""

    shard: int
    rows: list[int]
    images: Tensor | None
    pictures: list[Picture]
    failures: dict[int, Failure]


def batches(
    shards: Iterable[tuple[int, Requests]], workers: Workers, batch_size: int, size: tuple[int, int] | None, pin: bool
) -> Iterator[Batch]:
    """The images of each shard in batches of `batch_size`, a bucket for each (height, width): in the order of the items, and
    at the end of the shard what is left in the buckets. What a batch holds depends on its shard only. After them comes a
    batch without images, with the failures. `size`: the (height, width) of all images, others fail; None: any."""
    started: deque[tuple[int, int]] = deque()  # (shard, number of its items), as the requests are drawn

    def requests() -> Iterator[Request]:
        for shard, requests_of_shard in shards:
            started.append((shard, len(requests_of_shard)))
            yield from requests_of_shard

    answers = workers.map(requests())
    first = next(answers, None)
    while started:
        shard, count = started.popleft()
        buckets: dict[tuple[int, ...], list[tuple[int, Picture]]] = {}
        failures: dict[int, Failure] = {}
        for row in range(count):
            answer, first = (first, None) if first is not None else (next(answers), None)
            if isinstance(answer, Picture) and size and answer.pixels.shape[:2] != size:
                height, width = answer.pixels.shape[:2]
                answer = Failure(
                    "other_size",
                    f"{height} x {width}; the first ones have {size[0]} x {size[1]}: give --resize, or --mixed-sizes",
                )
            if isinstance(answer, Failure):
                failures[row] = answer
                continue
            assert answer is not None
            bucket = buckets.setdefault(answer.pixels.shape, [])
            bucket.append((row, answer))
            if len(bucket) == batch_size:
                yield _batch(shard, buckets.pop(answer.pixels.shape), pin)
        for bucket in buckets.values():
            yield _batch(shard, bucket, pin)
        yield Batch(shard, [], None, [], failures)
        if not started:  # the next shard's requests may not have been drawn yet
            first = next(answers, None)


def _batch(shard: int, bucket: list[tuple[int, Picture]], pin: bool) -> Batch:
    height, width, channels = bucket[0][1].pixels.shape
    images = torch.empty(len(bucket), channels, height, width, dtype=torch.uint8, pin_memory=pin)
    for i, (_, picture) in enumerate(bucket):
        images.numpy()[i] = picture.pixels.transpose(2, 0, 1)
    return Batch(shard, [row for row, _ in bucket], images, [picture for _, picture in bucket], {})


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
