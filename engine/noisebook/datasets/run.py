"""A whole data set: the plan, what is done of it already, and who makes the rest."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from noisebook.datasets import ledger
from noisebook.datasets.decoding import Picture, requests_for
from noisebook.datasets.loader import Workers
from noisebook.datasets.plan import FILES, ITEMS, PLAN, Plan, Settings
from noisebook.datasets.shard import Tokenizer
from noisebook.datasets.sources import Source, enumerate_inputs
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, SpecError

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec

PEEK = 64  # images looked at to find out whether all have one size


@dataclass(frozen=True)
class Job:
    """What to tokenise, and how; see the options of `noisebook tokenize`."""

    inputs: Sequence[str]
    output: str
    resume: bool = False
    input_format: str | None = None
    image_column: str | None = None
    shard_size: int = 1000
    batch_size: int = 32
    workers: int = 1
    resize: int = 0
    mixed_sizes: bool = False
    max_errors: int | None = None
    network: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("batch_size", 1), ("workers", 0), ("resize", 0)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.max_errors is not None and self.max_errors < 0:
            raise SpecError(f"max_errors must be at least 0, not {self.max_errors}")
        if self.resize and self.mixed_sizes:
            raise SpecError("--resize makes all images one size: leave out --mixed-sizes")


@dataclass(frozen=True)
class Rank:
    """Which of several equal processes this one is; it makes shards number, number + world, ..."""

    number: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.world:
            raise SpecError(f"a rank must be from 0 to {self.world - 1}, not {self.number}")

    @classmethod
    def of_environment(cls, environment: "os._Environ | dict" = os.environ) -> "Rank":
        """As torchrun, `srun` or a Slurm array says, or both of Slurm; alone where none does."""

        def told(name: str, default: int) -> int:
            return int(environment.get(name, default))

        if told("WORLD_SIZE", 1) > 1 and "RANK" in environment:
            return cls(told("RANK", 0), told("WORLD_SIZE", 1))
        tasks, arrays = told("SLURM_NTASKS", 1), told("SLURM_ARRAY_TASK_COUNT", 1)
        array = (told("SLURM_ARRAY_TASK_ID", 0) - told("SLURM_ARRAY_TASK_MIN", 0)) // told("SLURM_ARRAY_TASK_STEP", 1)
        return cls((array if arrays > 1 else 0) * tasks + (told("SLURM_PROCID", 0) if tasks > 1 else 0), tasks * arrays)


def make_plan(job: Job, codec_for: "Callable[[tuple[int, int] | None], Codec]", store: Store) -> "tuple[Plan, Codec]":
    """(the plan, its codec), written to `store` unless it is there. `codec_for`: a size, or None for many -> the codec.

    Raises DatasetError where another plan is there, or the same without `resume`."""
    old = Plan.load(store)
    if old is None:
        foreign = set(store.names()) - {PLAN, ITEMS, FILES, ledger.SHARDS, ledger.LEDGER}
        if [name for name in foreign if not name.startswith("events")]:
            raise DatasetError(f"{job.output}: something else is there ({min(foreign)}): choose an empty folder")
    elif not job.resume:
        raise DatasetError(
            f"{job.output}: a data set is there already: --resume goes on with it, another -o makes a new one"
        )
    source = enumerate_inputs(job.inputs, job.input_format, job.image_column, old.source if old is not None else None)
    size = (job.resize, job.resize) if job.resize else None
    if old is not None and not job.resize and not job.mixed_sizes:
        size = old.settings.size
    elif size is None and not job.mixed_sizes:
        size = _common_size(source, job.workers)
    codec = codec_for(size)
    plan = Plan(source, Settings(codec.spec, job.shard_size, job.batch_size, job.resize, size, dict(job.network)))
    if old is None:
        plan.save(store)
    else:
        old.refuse_unless_same(plan, job.output)
    return plan, codec


def _common_size(source: Source, workers: int) -> tuple[int, int] | None:
    """The size of the first images, if they have one. They are decoded in workers: one may kill or hang its process."""
    with Workers(workers) as pool:
        pictures = [p for p in pool.map(requests_for(source, source.items[:PEEK], 3, 0)) if isinstance(p, Picture)]
    sizes = {(p.height, p.width) for p in pictures}
    return sizes.pop() if len(sizes) == 1 else None


def states(plan: Plan, store: Store, shards: Sequence[int], log: Callable[[str], None]) -> tuple[list[int], int, int]:
    """(shards to make, shards done, images that failed in these). Shards whose bytes are not those of the ledger are made
    anew."""
    missing, done, failed = [], 0, 0
    for shard in shards:
        state, entry = ledger.state_of(store, shard, plan.hash)
        if state == ledger.DONE and entry is not None:
            done, failed = done + 1, failed + entry["n_failed"]
            continue
        missing.append(shard)
        if state not in ("missing", ledger.POISONED):
            log(f"{ledger.shard_name(shard)}: {state}: it is made anew")
    return missing, done, failed


def tokenize(
    job: Job,
    codec_for: "Callable[[tuple[int, int] | None], Codec]",
    log: Callable[[str], None],
    engine: "Callable[[Tokenizer, list[int], Progress], None] | None" = None,
    rank: Rank | None = None,
) -> dict[str, Any]:
    """Tokenises a data set, or what is left of it; returns the counts of this rank's shards: n_in, n_ok, n_failed, shards.

    engine  who makes the shards: actors of Ray (ray_engine.py); None: this process
    rank    makes every world-th shard alone; default: as the environment says

    Raises DatasetError (another data set is there, the input has changed), ImageError (more failures than may be),
    SpecError, NoisebookError where nothing can be written.
    """
    rank = rank or Rank.of_environment()
    store = Store(job.output)
    with store.lock(f".lock-{rank.number}"):
        if rank.world == 1:
            store.collect_strays(("", ledger.SHARDS, ledger.LEDGER))
        plan, codec = make_plan(job, codec_for, store)
        mine = list(range(rank.number, plan.shards, rank.world))
        todo, done, failed = states(plan, store, mine, log)
        log(
            f"{done} shards done, {len(todo)} to do ({len(plan.source.items)} images, {plan.shards} shards"
            + (f", rank {rank.number} of {rank.world})" if rank.world > 1 else ")")
        )
        with Progress(store, rank, plan, todo) as progress:
            if todo:
                (engine or _here)(
                    Tokenizer(plan, codec, store, job.workers, job.max_errors, failed, progress.tell), todo, progress
                )
        if rank.world == 1:  # what actors that were killed have left
            store.collect_strays(("", ledger.SHARDS, ledger.LEDGER))
    return summary(plan, store, mine)


def _here(tokenizer: Tokenizer, todo: list[int], _: "Progress") -> None:
    tokenizer.run(todo)


def summary(plan: Plan, store: Store, shards: Sequence[int]) -> dict[str, Any]:
    """Counts over the ledger."""
    entries = [e for e in (ledger.read_ledger(store, shard) for shard in shards) if e is not None and e["plan"] == plan.hash]
    codes: dict[str, int] = {}
    for entry in entries:
        for failure in entry["failed"]:
            codes[failure["code"]] = codes.get(failure["code"], 0) + 1
    total = {key: sum(entry[key] for entry in entries) for key in ("n_in", "n_ok", "n_failed")}
    return {
        **total,
        "shards": len(entries),
        "of_shards": len(shards),
        "failed_by_code": codes,
        "remarks": sum(len(entry["remarks"]) for entry in entries),
    }


class Progress:
    """One line for people, on stderr, and JSON lines for machines, in `events-RANK.jsonl` of a local data set."""

    def __init__(self, store: Store, rank: Rank, plan: Plan, todo: Sequence[int]):
        self.images = sum(len(plan.items(shard)) for shard in todo)
        self.path = store.local / f"events-{rank.number}.jsonl" if store.local is not None else None
        self.about = {"rank": rank.number, "world": rank.world, "plan": plan.hash, "todo": len(todo), "images": self.images}

    def __enter__(self) -> "Progress":
        import sys

        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self.bar = self.file = None
        with contextlib.suppress(OSError):  # a full disk, also under stderr: what counts says so for itself
            self.bar = tqdm(
                total=self.images, unit="img", mininterval=0.2 if terminal else 30, maxinterval=60, disable=not self.images
            )
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.file = open(self.path, "a", encoding="utf-8")
        self.tell("begin", self.about)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self.tell("end", {"error": None if error is None else f"{type(error).__name__}: {error}"})
        for told in (self.bar, self.file):
            if told is not None:
                with contextlib.suppress(OSError):
                    told.close()

    def tell(self, event: str, fields: dict[str, Any]) -> None:
        """Called with `batch` (images, seconds), `shard` (its ledger entry without the lists), `begin`, `end`."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.update({"batch": fields.get("images", 0), "shard": fields.get("n_failed", 0)}.get(event, 0))
        if event != "batch" and self.file is not None:
            try:
                self.file.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n")
                self.file.flush()
            except OSError:  # events are a help; what counts says for itself that the disk is full
                with contextlib.suppress(OSError):
                    self.file.close()
                self.file = None
