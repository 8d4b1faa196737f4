"""Shards made by actors of Ray, one per GPU: the driver hands them out in groups, and gives up on those that kill.

An actor calls the same idempotent `Tokenizer.run` as a single process. One that dies is replaced, and what it had not
committed is tried again shard by shard; after `retries` more tries a shard is poisoned: an entry in the ledger, not a hang.
"""

import contextlib
import os
import pickle
import platform
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from noisebook.datasets.ledger import states
from noisebook.datasets.plan import Plan
from noisebook.datasets.progress import Progress
from noisebook.datasets.recipe import CodecMaker
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.sources.base import File
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, NoisebookError, SpecError, first_line
from noisebook.runtime.limits import DEFAULT, Limits

Event = tuple[str, dict[str, Any]]

LOOK = 5.0  # seconds after which an actor is asked again what it has done
PATIENCE = 3600.0  # seconds after which an actor that does nothing, not even a batch, counts as dead
PLACE = 600.0  # seconds in which a cluster must find a place for one actor: it may have to start a machine
STILLBORN = 5  # actors in a row that die before they have a codec
GROUP = 32  # shards of one call at most: within a call the next shard is decoded while the one before is coded and written


class Worker:
    """What an actor does, in two threads: one works, one says how far that is. Its process may be killed at any moment."""

    place = "node"  # what has it to itself, for messages

    def __init__(self, output: str, make_codec: CodecMaker, workers: int, limits: Limits = DEFAULT):
        self.output, self.make_codec, self.workers, self.limits = output, make_codec, workers, limits
        self.events: list[Event] = []
        self.lock = threading.Lock()

    def load(self, given: "Given") -> dict[str, Any]:
        """Reads the plan and makes the codec; where this is. Not the constructor: what that raises, Ray calls a death."""
        store = Store(self.output)
        recorded = Plan.load(store, self.limits)
        if recorded is None:
            raise DatasetError(
                f"{self.output}: this {self.place} sees no plan there: -o must be a folder or URL that all share"
            )
        if (recorded.hash, recorded.stamp) != (given.hash, given.stamp):
            raise DatasetError(f"{self.output}: this {self.place} sees another plan there: wait until all see the new one")
        plan = Plan(replace(recorded.source, files=given.files), recorded.settings, recorded.version)
        codec = self.make_codec(plan.settings.size, plan.settings.network)
        self.tokenizer = self._make(plan, codec, store)
        return {"host": platform.node(), "process": os.getpid()}

    def _make(self, plan: Plan, codec: Any, store: Store) -> Tokenizer:
        return Tokenizer(plan, codec, store, self.workers, tell=self._tell, limits=self.limits)

    def make(self, shards: list[int]) -> list[Event]:
        """Makes and commits shards; the events that were not fetched yet."""
        self.tokenizer.run(shards)
        return self.hear()

    def hear(self) -> list[Event]:
        """The events since the last call."""
        with self.lock:
            events, self.events = self.events, []
        return events

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        with self.lock:
            self.events.append((event, {"time": round(time.time(), 3), **fields}))


@dataclass(frozen=True)
class Given:
    """What the driver gives to actors: the files where its user said they are, and which plan they are of. The paths that
    the plan records are opened by nobody."""

    files: Sequence[File]
    hash: str
    stamp: str

    @classmethod
    def of(cls, plan: Plan) -> "Given":
        return cls(plan.source.files, plan.hash, plan.stamp)


@dataclass
class Member:
    """An actor as the driver sees it. `work` loads its codec, or makes `shards`; None: it is idle."""

    actor: Any
    work: Any
    asked: Any  # what has it done? A future; the first answer says that the actor has a place
    shards: list[int] = field(default_factory=list)
    placed: bool = False
    loaded: bool = False
    heard: float = field(default_factory=time.monotonic)  # when it last did something
    looked: float = field(default_factory=time.monotonic)


class Crew:
    """Hands out shards until all are made or poisoned; `tokenizer` keeps the count of failures and makes none itself.

    hire      makes an actor of `Worker`
    size      how many at once, as far as there is a place for them
    patience  seconds after which an actor that does nothing counts as dead
    place     seconds in which one of them must have a place in the cluster
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        todo: Sequence[int],
        progress: Progress,
        hire: Callable[[], Any],
        size: int,
        retries: int,
        patience: float = PATIENCE,
        place: float = PLACE,
    ):
        self.tokenizer, self.progress, self.hire, self.size, self.retries = tokenizer, progress, hire, size, retries
        self.patience, self.place = patience, place
        self.todo, self.waiting, self.left = todo, deque(todo), set(todo)
        self.alone: set[int] = set()  # shards that were with an actor when it died, with or without others
        self.deaths: Counter[int] = Counter()  # of actors that had this shard and no other
        self.members: list[Member] = []
        self.stillborn, self.placed = 0, time.monotonic()
        self.given: Any = None  # a `Given` that Ray holds, once for all actors

    def run(self) -> None:
        """Raises ImageError as `Tokenizer.run`, what an actor raises that is no death (a codec or input that is wrong for
        all), and DatasetError where no actor finds a place or lives until it has a codec."""
        import ray

        self.given = ray.put(Given.of(self.tokenizer.plan))
        try:
            while self.left:
                self._hire_and_hand_out()
                futures = [f for m in self.members for f in (m.work, m.asked) if f is not None]
                ready = set(ray.wait(futures, num_returns=1, timeout=LOOK / 5)[0])
                ready |= set(ray.wait(futures, num_returns=len(futures), timeout=0)[0])
                for member in list(self.members):
                    self._look(member, ready)
                self._refuse_unless_placed()
        finally:
            for member in self.members:
                _end(member.actor)
        self._refuse_unseen()

    def _hire_and_hand_out(self) -> None:
        while len(self.members) < min(self.size, len(self.left)):
            actor = self.hire()
            self.members.append(Member(actor, actor.load.remote(self.given), actor.hear.remote()))
        for member in self.members:
            if member.loaded and member.work is None and self.waiting:
                member.shards, member.heard = self._group(), time.monotonic()
                member.work = member.actor.make.remote(member.shards)

    def _group(self) -> list[int]:
        """The next shards for an actor: fewer and fewer, so that all end together; by itself what may have killed one."""
        group, wanted = [self.waiting.popleft()], min(GROUP, len(self.waiting) // (2 * self.size))
        while group[0] not in self.alone and len(group) < wanted and self.waiting[0] not in self.alone:
            group.append(self.waiting.popleft())
        return group

    def _look(self, member: Member, ready: set[Any]) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            if member.asked in ready:
                events, member.asked = ray.get(member.asked), None
                if not member.placed:
                    member.placed, member.heard = True, time.monotonic()
                self._hear(member, events)
            if member.work in ready:
                answer, member.work = ray.get(member.work), None
                self._done(member, answer)
            now = time.monotonic()
            if member.work is not None and member.placed and now - member.heard > self.patience:
                raise TimeoutError(f"it has done nothing for {self.patience:g} s")
            if member.work is not None and member.asked is None and now - member.looked > LOOK:
                member.asked, member.looked = member.actor.hear.remote(), now
        except RayTaskError as error:
            if isinstance(error.cause, NoisebookError):
                raise error.cause from None
            raise
        except (RayError, TimeoutError) as error:
            lines = str(error).strip().splitlines()  # of an exception while it was made, the last says which
            self._bury(member, lines[-1 if getattr(error, "actor_init_failed", False) else 0].strip())

    def _done(self, member: Member, answer: Any) -> None:
        if member.loaded:
            self._hear(member, answer)
            self.left -= set(member.shards)
            member.shards = []
        else:
            member.loaded, self.stillborn = True, 0
            self.progress.tell("actor", answer)

    def _hear(self, member: Member, events: list[Event]) -> None:
        for event, fields in events:
            member.heard = time.monotonic()
            self.progress.tell(event, fields)
            if event == "shard":  # it is committed, whatever becomes of the actor
                self.left.discard(fields["shard"])
                self.tokenizer.count(fields["n_failed"])

    def _bury(self, member: Member, reason: str) -> None:
        self.members.remove(member)
        _end(member.actor)
        if not member.loaded:
            self.stillborn += 1
            if self.stillborn >= STILLBORN:
                self._hire_no_more(reason)
        shards = [shard for shard in member.shards if shard in self.left]
        if len(shards) == 1:
            self.deaths[shards[0]] += 1
        for shard in shards:
            self.alone.add(shard)
            self.progress.tell("retry", {"shard": shard, "deaths": self.deaths[shard], "reason": reason})
            if self.deaths[shard] <= self.retries:
                self.waiting.append(shard)
            else:
                self.left.discard(shard)
                message = f"its actor died {self.deaths[shard]} times: {reason}"
                self.tokenizer.count(self.tokenizer.poison(shard, message))

    def _hire_no_more(self, reason: str) -> None:
        self.size = sum(member.loaded for member in self.members)
        if not self.size:
            raise DatasetError(
                f"{self.stillborn} actors in a row died before they had a codec: {reason}: has every node "
                "the packages, and memory? What is done stays done"
            )

    def _refuse_unseen(self) -> None:
        made = [shard for shard in self.todo if self.deaths[shard] <= self.retries]
        left, _, _ = states(self.tokenizer.store, made, self.tokenizer.plan.hash)
        if left:
            raise DatasetError(
                f"shards {left[:5]} were reported done, but are not in {self.tokenizer.store.url}: do all nodes share it?"
            )

    def _refuse_unless_placed(self) -> None:
        if not self.members or any(member.placed for member in self.members):
            self.placed = time.monotonic()
        elif time.monotonic() - self.placed > self.place:
            raise DatasetError(f"no actor found a place in the Ray cluster in {self.place:g} s: {_resources()}")


def _end(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # it is dead already, or Ray is
        ray.kill(actor)


def _resources() -> str:
    import ray

    total = {name: f"{count:g}" for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
    return f"it has {total.get('CPU', '0')} CPUs and {total.get('GPU', '0')} GPUs, and others may have taken them"


def connect() -> bool:
    """Connects with the cluster that RAY_ADDRESS names (`auto`: the one of this machine). Where it names none, or `local`,
    starts Ray here for this process only, rather than use one that somebody else may end. Returns whether it started Ray.
    Raises DatasetError where the cluster cannot be reached."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would try for a quarter of an hour
            socket.create_connection((host, int(port)), 10).close()
        ray.init(address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise DatasetError(f"RAY_ADDRESS={address}: Ray cannot be reached: {first_line(error)}") from error
    return address == "local"


def hiring(tokenizer: Tokenizer, make_codec: CodecMaker, share: dict[str, Any]) -> Callable[[], Any]:
    """A function that makes an actor with a share of a machine ({"num_gpus": 1}). Ray never restarts it: the crew does."""
    import ray

    options: dict[str, Any] = {**share, "max_concurrency": 2}
    actor_class = ray.remote(**options)(Worker)

    def hire() -> Any:
        try:
            return actor_class.remote(tokenizer.store.url, make_codec, tokenizer.workers, tokenizer.limits)
        except (TypeError, pickle.PicklingError) as error:
            raise SpecError(f"what makes the codec cannot be pickled for the actors: {first_line(error)}") from error

    return hire


def engine(
    make_codec: CodecMaker, device: str, actors: int | None, retries: int, log: Callable[[str], None]
) -> Callable[[Tokenizer, list[int], Progress], None]:
    """The engine as `run.run_job` takes it: actors on `device`, each with a codec of its own that `make_codec` makes there.

    actors   how many; None: one per GPU, or per two CPU cores
    retries  of a shard whose actor died
    Raises SpecError for bad numbers, DatasetError where Ray is not installed."""
    if retries < 0 or (actors is not None and actors < 1):
        raise SpecError("--actors must be at least 1, --retries at least 0")
    if find_spec("ray") is None:
        raise DatasetError("ray missing: pip install 'noisebook[ray]'")
    gpu = device.startswith("cuda")

    def run(tokenizer: Tokenizer, todo: list[int], progress: Progress) -> None:
        import ray

        started = not ray.is_initialized()
        own = connect() if started else False
        try:
            total = ray.cluster_resources()
            count = actors or max(1, int(total.get("GPU", 0) if gpu else total.get("CPU", 2) // 2))
            share: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": min(1.0, total.get("CPU", 1) / count)}
            if gpu and not total.get("GPU", 0):
                if own:
                    raise DatasetError("--device cuda: Ray finds no GPU on this machine: give --device cpu, or RAY_ADDRESS")
                log(f"no GPU in the Ray cluster yet: waiting up to {PLACE:g} s")
            Crew(tokenizer, todo, progress, hiring(tokenizer, make_codec, share), count, retries, PATIENCE, PLACE).run()
        finally:
            if started:
                ray.shutdown()

    return run
