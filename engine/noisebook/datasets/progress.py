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


class Progress:
    """One line for people, on stderr, and JSON lines for machines, in `events-RANK.jsonl` of a local data set."""

    def __init__(self, store: Store, rank: Rank, plan: Plan, todo: Sequence[int]):
        self.images = sum(len(plan.items(shard)) for shard in todo)
        self.path = store.local / f"events-{rank.number}.jsonl" if store.local is not None else None
        self.about = {"rank": rank.number, "world": rank.world, "plan": plan.hash, "todo": len(todo), "images": self.images}

    def __enter__(self) -> "Progress":
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self.bar = self.file = None
        with contextlib.suppress(OSError):  # a full disk, also under stderr: what matters reports it itself
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
        for sink in (self.bar, self.file):
            if sink is not None:
                with contextlib.suppress(OSError):
                    sink.close()

    def tell(self, event: str, fields: dict[str, Any]) -> None:
        """Called with `batch` (images, seconds), `shard` (its ledger entry without the lists), `begin`, `end`; with Ray,
        and with several devices, also with `actor` and `retry`."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.update({"batch": fields.get("images", 0), "shard": fields.get("n_failed", 0)}.get(event, 0))
        if event != "batch" and self.file is not None:
            try:
                self.file.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n")
                self.file.flush()
            except OSError:  # events are a help only; what matters reports itself that the disk is full
                with contextlib.suppress(OSError):
                    self.file.close()
                self.file = None
