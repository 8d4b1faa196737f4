"""What a run says while it works."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from noisebook.datasets.job import Rank
from noisebook.datasets.plan import Plan
from noisebook.datasets.store import Store

EVERY = {"batch": 30.0, "shard": 5.0}  # seconds between lines, where stderr is no terminal


class Progress:
    """For people a bar on stderr or, where that is no terminal, a line for finished shards, unless the line before is less
    than 5 seconds old; for machines JSON lines, in `events-RANK.jsonl` of a local data set."""

    def __init__(self, store: Store, rank: Rank, plan: Plan, todo: Sequence[int]):
        self.shards, self.made, self.images_of = len(todo), 0, dict.fromkeys(EVERY, 0)
        self.images = sum(len(plan.items(shard)) for shard in todo)
        self.path = store.local / f"events-{rank.number}.jsonl" if store.local is not None else None
        self.about = {"rank": rank.number, "world": rank.world, "plan": plan.hash, "todo": len(todo), "images": self.images}

    def __enter__(self) -> "Progress":
        from tqdm import tqdm

        self.bar = self.file = None
        self.begun = self.told = time.monotonic()
        if self.images and sys.stderr is not None and sys.stderr.isatty():
            with contextlib.suppress(OSError):
                self.bar = tqdm(total=self.images, unit="img", mininterval=0.2, maxinterval=60)
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.file = open(self.path, "a", encoding="utf-8")
        self.tell("begin", self.about)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self.tell("end", {"error": None if error is None else f"{type(error).__name__}: {error}"})
        for sink in (self.bar, self.file):
            if sink is not None:
                with contextlib.suppress(OSError):
                    sink.close()

    def tell(self, event: str, fields: dict[str, Any]) -> None:
        """Called with `batch` (images, seconds), `shard` (its ledger entry without the lists), `begin`, `end`; with Ray,
        and with several devices, also with `actor` and `retry`."""
        if event in EVERY:
            self._show(event, fields["images"] if event == "batch" else fields["n_failed"])
        if event != "batch" and self.file is not None:
            try:
                self.file.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n")
                self.file.flush()
            except OSError:  # events are a help only; what matters reports itself that the disk is full
                with contextlib.suppress(OSError):
                    self.file.close()
                self.file = None

    def _show(self, event: str, images: int) -> None:
        """Counts images that are coded, or have failed in a shard that is made, and shows how far the run is."""
        self.images_of[event] += images
        self.made += event == "shard"
        with contextlib.suppress(OSError, ValueError):  # a full disk, or a closed stderr: what matters reports it itself
            now = time.monotonic()
            if self.bar is not None:
                self.bar.update(images)
            elif sys.stderr is not None and (now - self.told >= EVERY[event] or self.made == self.shards):
                self.told, done = now, sum(self.images_of.values())
                speed = f"{done / max(now - self.begun, 1e-9):.3g} images/s"
                shards = f"{self.made:,} of {self.shards:,} shards"
                print(f"{shards}, {done:,} of {self.images:,} images, {speed}", file=sys.stderr, flush=True)
