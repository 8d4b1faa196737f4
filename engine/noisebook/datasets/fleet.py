"""Shards made by several devices of one machine: this process hands them out to a child for each device, by a pipe.

A child calls the same idempotent `Tokenizer.run` as a single process, and asks for a shard whenever its workers could begin
one. One that dies is replaced, and what it had not committed is tried again shard by shard, rather on another device; after
`retries` more tries a shard is poisoned, as with Ray. Children end with this process, however that ends.
"""

import contextlib
import multiprocessing
import pickle
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

import torch

from noisebook.datasets.children import Orders, work
from noisebook.datasets.memory import Share
from noisebook.datasets.progress import Progress
from noisebook.datasets.ray import PATIENCE, Given
from noisebook.datasets.recipe import CodecRecipe, OwnCodec
from noisebook.datasets.shard import Tokenizer
from noisebook.errors import DatasetError, SpecError, first_line

METHOD = "spawn"  # how children start: a fork of a process with CUDA cannot use it
LOOK = 1.0  # seconds between two looks whether a child is dead
LOSSES = 3  # children in a row that die on a device without a shard made

Log = Callable[[str], None]


@dataclass
class Seat:
    """A device and the child that works on it, if there is one. `shards` were handed to it and are not committed."""

    number: int
    device: str
    process: Any = None
    link: Any = None
    loaded: bool = False
    resting: bool = True
    shards: set[int] = field(default_factory=set)
    heard: float = 0.0  # when it last said something
    losses: int = 0  # children in a row that died here, and had committed no shard

    def leave(self, patience: float = 0) -> str:
        """Ends the child; how it had ended by itself, if it had, or does in `patience` seconds."""
        self.process.join(patience)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.link.close()
        self.process, self.link, self.loaded, self.shards = None, None, False, set()
        if code is None or code >= 0:
            return "it broke off" if code is None else f"exit code {code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"


class Fleet:
    """Hands out shards until all are made or poisoned; `tokenizer` keeps the count of failures and makes none itself.

    hire      starts a child for a device: (its process, our end of the pipe)
    patience  seconds after which a child that says nothing while it works counts as dead
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        todo: Sequence[int],
        progress: Progress,
        devices: Sequence[str],
        hire: Callable[[Seat], tuple[Any, Any]],
        retries: int,
        log: Log,
        patience: float,
    ):
        self.tokenizer, self.progress, self.hire, self.retries = tokenizer, progress, hire, retries
        self.log, self.patience = log, patience
        self.waiting, self.left = deque(todo), set(todo)
        self.alone: set[int] = set()  # shards that were with a child when it died, with or without others
        self.deaths: Counter[int] = Counter()  # of children that had this shard and no other
        self.died_on: dict[int, int] = {}  # shard -> the seat where that was last
        self.seats = [Seat(number, device) for number, device in enumerate(devices)]
        self.said: set[str] = set()  # what children have logged: each has the same warnings

    @property
    def manned(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.process is not None]

    def run(self) -> None:
        """Raises ImageError as `Tokenizer.run`, what a child raises (a codec or input that is wrong for all), and
        DatasetError where no device has a child that lives until it has a codec."""
        try:
            while self.left:
                self._start()
                self._hand_out()
                wait([seat.link for seat in self.manned], LOOK)
                for seat in self.manned:
                    self._listen(seat)
        finally:
            for seat in self.manned:
                seat.process.kill()
            for seat in self.manned:
                seat.leave()

    def _start(self) -> None:
        free = sorted((seat for seat in self.seats if seat.process is None), key=lambda seat: seat.losses)
        for seat in free[: max(0, min(len(self.seats), len(self.left)) - len(self.manned))]:
            seat.process, seat.link = self.hire(seat)
            seat.resting, seat.heard = True, time.monotonic()

    def _hand_out(self) -> None:
        for seat in self.manned:
            if seat.loaded and seat.resting and self._next_for(seat) is not None:
                seat.resting, seat.heard = False, time.monotonic()
                self._say(seat, "run")

    def _next_for(self, seat: Seat) -> int | None:
        """The next shard for a child: by itself what may have killed one, and not where that was if others are there."""
        if seat.shards & self.alone:
            return None
        others = len(self.manned) > 1
        for shard in self.waiting:
            if shard in self.alone and (seat.shards or (others and self.died_on.get(shard) == seat.number)):
                continue
            return shard
        return None

    def _say(self, seat: Seat, what: Any) -> None:
        with contextlib.suppress(OSError):  # it is dead: its end of the pipe says so next
            seat.link.send(what)

    def _listen(self, seat: Seat) -> None:
        alive = seat.process.is_alive()
        while True:
            try:
                if not seat.link.poll():
                    break
                kind, *what = seat.link.recv()
            except (EOFError, OSError):
                return self._bury(seat)
            if kind == "dies":
                return self._bury(seat, what[0])
            seat.heard = time.monotonic()
            self._obey(seat, kind, what)
        if not alive:
            return self._bury(seat)
        if not (seat.loaded and seat.resting) and time.monotonic() - seat.heard > self.patience:
            self._bury(seat, f"it has done nothing for {self.patience:g} s")

    def _obey(self, seat: Seat, kind: str, what: list[Any]) -> None:
        if kind == "loaded":
            seat.loaded = True
            self.progress.tell("actor", what[0])
        elif kind == "next":
            shard = self._next_for(seat)
            if shard is not None:
                self.waiting.remove(shard)
                seat.shards.add(shard)
            self._say(seat, shard)
        elif kind == "rests":
            seat.resting = True
            self.left -= seat.shards
            seat.shards.clear()
        elif kind == "log":
            if what[0] not in self.said:
                self.said.add(what[0])
                self.log(what[0])
        elif kind == "raises":
            raise what[0]
        else:
            self._hear(seat, *what)

    def _hear(self, seat: Seat, event: str, fields: dict[str, Any]) -> None:
        self.progress.tell(event, fields)
        if event == "shard":  # it is committed, whatever becomes of the child
            self.tokenizer.store.refuse_moved()  # the child holds no lock that would tell it
            seat.losses = 0
            seat.shards.discard(fields["shard"])
            self.left.discard(fields["shard"])
            self.tokenizer.count(fields["n_failed"])

    def _bury(self, seat: Seat, reason: str = "") -> None:
        shards, loaded = sorted(seat.shards & self.left), seat.loaded
        ended = seat.leave(0 if reason else LOOK)
        reason = reason or ended
        seat.losses += 1
        again = f"; shards {', '.join(map(str, shards))} are tried again" if shards else ""
        self.log(f"the process on {seat.device} died: {reason}{again}")
        if len(shards) == 1:
            self.deaths[shards[0]] += 1
        for shard in shards:
            self.alone.add(shard)
            self.died_on[shard] = seat.number
            self.progress.tell("retry", {"shard": shard, "deaths": self.deaths[shard], "reason": reason})
            if self.deaths[shard] <= self.retries:
                self.waiting.append(shard)
                continue
            self.left.discard(shard)
            message = f"its process died {self.deaths[shard]} times: {reason}"
            self.log(f"shard {shard} is given up: {message}")
            self.tokenizer.count(self.tokenizer.poison(shard, message))
        if seat.losses >= LOSSES and (len(self.seats) > 1 or not loaded):
            self._do_without(seat, reason)

    def _do_without(self, seat: Seat, reason: str) -> None:
        self.seats.remove(seat)
        if not self.seats:
            raise DatasetError(
                f"{seat.losses} processes in a row died on {seat.device} before they had a codec: {reason}: is there "
                'memory, and has the script that runs `if __name__ == "__main__":`? What is done stays done'
            )
        self.log(f"{seat.device} is left out: {seat.losses} processes in a row died there")


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Inside, Ctrl-C waits; a child that is started there never hears it: a terminal sends it to all, and its parent ends
    it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or the first child starts it, which lets Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hiring(orders: Orders, workers: Sequence[int]) -> Callable[[Seat], tuple[Any, Any]]:
    """A function that starts the child of a seat; `workers`: how many processes decode for each seat."""
    context = multiprocessing.get_context(METHOD)

    def hire(seat: Seat) -> tuple[Any, Any]:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(orders, seat.device, workers[seat.number], theirs))
        with _ctrl_c_later(), theirs:
            process.start()
        return process, ours

    return hire


def shared_out(count: int, seats: int) -> list[int]:
    """`count` workers for so many seats, at least one each, or none at all."""
    return [count and max(1, count // seats + (seat < count % seats)) for seat in range(seats)]


def engine(
    recipe: CodecRecipe | OwnCodec, devices: Sequence[str], retries: int, log: Log
) -> Callable[[Tokenizer, list[int], Progress], None]:
    """The engine as `run.run_job` takes it: a child on each of `devices`, with a codec of its own that `recipe` makes there.

    retries  of a shard whose child died
    Raises SpecError for bad numbers, and a recipe that cannot be taken to another process."""
    if retries < 0:
        raise SpecError("--retries must be at least 0")
    try:
        packed = pickle.dumps(recipe)
    except Exception as error:  # pickle raises several types
        raise SpecError(
            f"the function that makes the codec cannot go to the processes of {len(devices)} devices ({first_line(error)}): "
            "define it at the top of a module, give a CodecRecipe, or name one device"
        ) from error

    log(f"{len(devices)} devices: {', '.join(devices)}")

    def run(tokenizer: Tokenizer, todo: list[int], progress: Progress) -> None:
        with tempfile.NamedTemporaryFile(prefix="noisebook-turn-") as turn:
            share, threads = Share(len(devices), turn.name), torch.get_num_threads()
            given, store = Given.of(tokenizer.plan), tokenizer.store.url
            orders = Orders(packed, store, given, tokenizer.limits, share, threads)
            hire = hiring(orders, shared_out(tokenizer.workers, len(devices)))
            Fleet(tokenizer, todo, progress, devices, hire, retries, log, PATIENCE).run()

    return run
