"""Is a data set whole? Offline, without a model."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from noisebook.datasets.ledger import (
    NAMED,
    POISONED,
    SHARDS,
    failures,
    read_ledger,
    sha256,
    shard_name,
    shards_with_entry,
    versions_made,
)
from noisebook.datasets.plan import Plan
from noisebook.datasets.store import Store
from noisebook.datasets.table import Vocabularies, batches_of, open_shard, token_column_name, tokens_of
from noisebook.errors import FormatError, NoisebookError, printable
from noisebook.runtime.limits import DEFAULT, Limits, too_much

SHOWN = 1000  # problems that are named; the others are counted
UNPACKED = 1 << 26  # bytes of a shard, see `table.open_shard`
WORK_OF_ROW, WORK_OF_BYTE = 30, 2  # microseconds: to unpack a row, and allowed for each byte of a file beside the limit


def check(folder: str, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Reads all of a data set: {"shards", "of_shards", "n_in", "n_ok", "n_failed", "n_passed_over", "failed", "versions",
    "problems": [{"name", "error"}], "damaged", "complete"}.

    "failed" has the key, code and message of the first 100 images that failed, from the ledger: they are no problem. Of more
    than 1,000 problems the last entry says how many are left out. "damaged" says whether one of them is another than a
    shard that has not been made yet. "versions" is a list of {"noisebook": ..., "torch": ..., ..., "shards": how many were
    made under these}: several where a run was resumed under others.

    Of every shard: the ledger's own hash, the file's SHA-256, page checksums, that keys are those of the plan in its order
    without the failed ones, n_in = n_ok + n_failed, and that every token is below its vocab_size. Columns that were carried
    through are covered by the SHA-256 only. Raises FormatError where there is no data set, or its plan is damaged.
    """
    store = Store(folder)
    plan = Plan.load(store, limits)
    if plan is None:
        raise FormatError(f"{printable(folder)}: there is no plan.json: not a data set of noisebook's, or never begun")
    problems = _Problems()
    out: dict[str, Any] = {"shards": 0, "n_in": 0, "n_ok": 0, "n_failed": 0, "problems": [], "of_shards": plan.shards}
    out["n_passed_over"] = sum(plan.source.passed_over.values())
    there, after, whole = shards_with_entry(store, plan.shards), 0, list[dict[str, Any]]()
    failed: list[dict[str, str]] = []
    for shard in there:
        problems.not_made(range(after, shard))
        after, name = shard + 1, shard_name(shard)
        try:
            entry = read_ledger(store, shard)
            if entry is None:
                problems.not_made([shard])
                continue
            if entry["status"] == POISONED:
                problems.not_made([shard], f"given up: {printable(entry['failed'][0]['message'], 300)}")
                continue
            _check_shard(plan, shard, entry, store.read(name), name, limits)
        except NoisebookError as error:
            problems.add(name, f"{type(error).__name__}: {error}")
            continue
        out["shards"] += 1
        whole.append({"versions": entry["versions"]})
        failed = (failed + failures([entry]))[:NAMED]
        for key in ("n_in", "n_ok", "n_failed"):
            out[key] += entry[key]
    problems.not_made(range(after, plan.shards))
    for extra in store.names(SHARDS):
        stem = extra.removesuffix(".parquet")
        known = stem.isascii() and stem.isdecimal() and len(stem) < 20 and int(stem) < plan.shards
        if not known or shard_name(int(stem)) != f"{SHARDS}/{extra}":
            problems.add(f"{SHARDS}/{printable(extra)}", "not a shard of the plan: remove it")
    out["versions"] = [{**versions, "shards": count} for versions, count in versions_made(whole)]
    complete = out["shards"] == plan.shards and not problems.count
    return {**out, "failed": failed, "problems": problems.named(), "damaged": problems.damaged, "complete": complete}


class _Problems:
    """What is wrong, as far as it is named, and how much that is in all."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        self.count = 0
        self.damaged = False  # whether one of them is another than a shard that is not made

    def add(self, name: str, error: str) -> None:
        self.damaged = True
        self._add(name, error)

    def _add(self, name: str, error: str) -> None:
        self.count += 1
        if len(self.rows) < SHOWN:
            self.rows.append({"name": name, "error": error})

    def not_made(self, shards: Sequence[int], why: str = "not made yet") -> None:
        """There may be very many of these shards."""
        for shard in islice(shards, SHOWN):
            self._add(shard_name(shard), f"{why}: tokenize --resume")
        self.count += max(0, len(shards) - SHOWN)

    def named(self) -> list[dict[str, str]]:
        left = self.count - len(self.rows)
        return self.rows + ([{"name": "...", "error": f"{left:,} more problems"}] if left else [])


def _check_shard(plan: Plan, shard: int, entry: dict[str, Any], data: bytes | None, name: str, limits: Limits) -> None:
    def require(good: bool, what: str) -> None:
        if not good:
            raise FormatError(f"{name}: {what}: tokenize --resume makes it anew")

    items, spec = plan.items(shard), plan.settings.spec
    require(entry["plan"] == plan.hash, "it is of another plan")
    require(data is not None, "it is gone")
    assert data is not None
    require(sha256(data) == entry["sha256"], "damaged (SHA-256)")
    columns = ["key", token_column_name(spec), "height", "width"]
    opened, footer = open_shard(data, name, columns, UNPACKED)
    require((footer.get("plan"), footer.get("shard")) == (plan.hash, shard), "it is another shard, or of another plan")
    failed = {failure["key"] for failure in entry["failed"]}
    require(entry["n_in"] == len(items) == entry["n_ok"] + entry["n_failed"], "its counts do not add up")
    counts = (entry["n_ok"], entry["n_failed"])
    require(counts == (opened.metadata.num_rows, len(failed)), "its counts are not those of its rows")
    keys, vocabularies = (item.key for item in items if item.key not in failed), Vocabularies(spec, name, limits)
    work = 0
    for table in batches_of(opened, name, columns, limits):
        wanted = list(islice(keys, len(table)))
        require(table["key"].to_pylist() == wanted, "its keys are not those of the plan without the failed ones")
        if "payload" in table.column_names:  # each row is within the limit of work, and there may be very many
            work += WORK_OF_ROW * len(table) + table["payload"].nbytes
            refusal = too_much("to unpack it takes about", max(0, work - WORK_OF_BYTE * len(data)), limits, "work")
            if refusal:
                raise FormatError(f"{name}: {refusal}")
        tokens = tokens_of(table, spec, limits, vocabularies)
        heights, widths = (table[column].to_numpy() for column in ("height", "width"))
        if isinstance(tokens, np.ndarray) and len(tokens) and (heights == heights[0]).all() and (widths == widths[0]).all():
            vocabularies.check(tokens, int(heights[0]), int(widths[0]))
            continue
        for tokens_of_row, height, width in zip(tokens, heights.tolist(), widths.tolist(), strict=True):
            vocabularies.check(tokens_of_row, height, width)
    require(next(keys, None) is None, "its keys are not those of the plan without the failed ones")
