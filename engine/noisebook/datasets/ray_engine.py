"""Shards made by actors of Ray, one a GPU: the driver hands them out one by one, and gives up on those that kill.

An actor calls the same idempotent `Tokenizer.run` as a single process. An actor that dies is replaced and its shard tried
again; after `retries` more tries the shard is poisoned: an entry in the ledger, not a hang.
"""

import argparse
import time
from collections import deque
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from noisebook.datasets.plan import Plan
from noisebook.datasets.run import Progress, states
from noisebook.datasets.store import Store
from noisebook.datasets.tokenizer import Tokenizer
from noisebook.errors import DatasetError, NoisebookError, SpecError

if TYPE_CHECKING:
    from noisebook.codec import Codec

PATIENCE = 3600.0  # seconds after which an actor that answers nothing is taken for dead


class Worker:
    """What an actor does. Its process may be killed at any moment."""

    def __init__(self, output: str, make: "Callable[[tuple[int, int] | None], Codec]", workers: int):
        self.output, self.make_codec, self.workers = output, make, workers
        self.heard: list[tuple[str, dict[str, Any]]] = []

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Made by the first shard and not by `__init__`, of whose errors Ray would tell as of a death."""
        store = Store(self.output)
        plan = Plan.load(store)
        if plan is None:
            raise DatasetError(
                f"{self.output}: this node sees no plan there: -o must be a folder or URL that all nodes share"
            )
        tell = self.heard.append
        return Tokenizer(plan, self.make_codec(plan.settings.size), store, self.workers, tell=lambda *event: tell(event))

    def make(self, shard: int) -> list[tuple[str, dict[str, Any]]]:
        """Makes and commits a shard; the events of it."""
        self.heard.clear()
        self.tokenizer.run([shard])
        return self.heard


def engine(args: argparse.Namespace) -> Callable[[Tokenizer, list[int], Progress], None]:
    """The engine of the command line's options, as `run.tokenize` takes it."""
    if args.retries < 0 or (args.actors is not None and args.actors < 1):
        raise SpecError("--actors must be at least 1, --retries at least 0")
    if find_spec("ray") is None:
        raise DatasetError("ray missing: pip install 'noisebook[ray]'")
    gpu = args.device.startswith("cuda")

    def make_codec(size: "tuple[int, int] | None") -> "Codec":
        from noisebook.datasets.command import codec_for

        return codec_for(args)(size)

    def run(tokenizer: Tokenizer, todo: list[int], progress: Progress) -> None:
        import ray

        started = not ray.is_initialized()
        if started:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            total = ray.cluster_resources()
            if gpu and total.get("GPU", 0) < 1:
                raise DatasetError("Ray knows of no GPU here: start it where there are some, or give --device cpu")
            count = args.actors or max(1, int(total.get("GPU", 0) if gpu else total.get("CPU", 2) // 2))
            share: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": min(1.0, total.get("CPU", 1) / count)}
            drive(tokenizer, todo, progress, make_codec, min(count, len(todo)), share, args.retries)
        finally:
            if started:
                ray.shutdown()

    return run


def drive(
    tokenizer: Tokenizer, todo: list[int], progress: Progress, make_codec: "Callable[[tuple[int, int] | None], Codec]",
    actors: int, share: dict[str, Any], retries: int, patience: float = PATIENCE,
) -> None:  # fmt: skip
    """Hands out shards until all are done or poisoned; `tokenizer` keeps the count of failures and makes none itself. Raises
    ImageError as `Tokenizer.run`, and what an actor raises that is no death: a codec or input that is wrong for all."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

    remote = ray.remote(**share)(Worker)  # never restarted by Ray: the loop below counts deaths
    waiting, tries = deque(todo), dict.fromkeys(todo, 0)
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, int, float]] = {}  # future -> (actor, shard, since)
    while waiting or busy:
        while waiting and len(busy) < actors:
            actor = idle.pop() if idle else remote.remote(tokenizer.store.url, make_codec, tokenizer.workers)
            shard = waiting.popleft()
            busy[actor.make.remote(shard)] = actor, shard, time.monotonic()
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=5.0)
        late = [f for f, (_, _, since) in busy.items() if f not in ready and time.monotonic() - since > patience]
        for future in [*ready, *late]:
            actor, shard, _ = busy.pop(future)
            try:
                if future in late:
                    raise TimeoutError(f"no answer after {patience:g} s")
                for event, fields in ray.get(future):
                    progress.tell(event, fields)
                    tokenizer.count(fields.get("n_failed", 0))
                idle.append(actor)
            except (RayActorError, WorkerCrashedError, TimeoutError) as error:
                ray.kill(actor)
                tries[shard] += 1
                reason = str(error).strip().splitlines()[0]
                progress.tell("retry", {"shard": shard, "tries": tries[shard], "reason": reason})
                if tries[shard] <= retries:
                    waiting.append(shard)
                else:
                    tokenizer.count(tokenizer.poison(shard, f"its actor died {tries[shard]} times: {reason}"))
            except RayTaskError as error:
                if isinstance(error.cause, NoisebookError):
                    raise error.cause from None
                raise
    made = [shard for shard in todo if tries[shard] <= retries]
    left, _, _ = states(tokenizer.plan, tokenizer.store, made, lambda _: None)
    if left:
        raise DatasetError(
            f"shards {left[:5]} were reported done, but are not in {tokenizer.store.url}: do all nodes share it?"
        )
