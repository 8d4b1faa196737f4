"""What became of every item: one JSON file per shard, written after the shard, so that where it is, the shard is."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from noisebook.datasets.store import Store
from noisebook.errors import FormatError, first_line, printable

SHARDS, LEDGER = "shards", "ledger"
DONE, POISONED = "done", "poisoned"
MIXED = "tokens may differ in the last bits between them, and `verify` and `report` list them all"
MOST = 1 << 26  # bytes of a JSON file
NAMED = 100  # failures that a summary names; the ledger has all


def shard_name(shard: int) -> str:
    return f"{SHARDS}/{shard:06d}.parquet"


def ledger_name(shard: int) -> str:
    return f"{LEDGER}/{shard:06d}.json"


def shards_with_entry(store: Store, shards: int) -> list[int]:
    """Those of `shards` shards that have an entry: a plan may claim many more than anybody could look for one by one."""
    stems = (name.removesuffix(".json") for name in store.names(LEDGER))
    numbers = (int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and len(stem) < 20)
    return sorted({number for number in numbers if number < shards})


def write_ledger(store: Store, shard: int, entry: dict[str, Any]) -> None:
    """Writes the entry of a shard, and its own SHA-256, so that a flipped bit shows."""
    text = json.dumps(entry, indent=1)
    store.write(
        ledger_name(shard),
        json.dumps({"sha256_of_entry": _digest(entry)})[:-1].encode() + b', "entry": ' + text.encode() + b"}\n",
    )


def read_ledger(store: Store, shard: int) -> dict[str, Any] | None:
    """The entry of a shard, None where there is none. Raises FormatError for a damaged one, and one that cannot be."""
    data = store.read(ledger_name(shard), MOST)
    if data is None:
        return None
    where = f"{printable(store.url)}/{ledger_name(shard)}"
    both = read_json_object(data, where)
    entry = both.get("entry")
    try:
        good = isinstance(entry, dict) and both.get("sha256_of_entry") == _digest(entry) and _is_entry(entry, shard)
    except RecursionError:
        good = False
    if not good:
        raise FormatError(f"{where}: damaged: remove it, and resume")
    assert isinstance(entry, dict)
    return entry


def read_json_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from a file that may say anything. `what` is named in the error: FormatError for what is no JSON, no
    object, too large or too deep."""
    if len(data) > MOST:
        raise FormatError(f"{what}: {len(data):,} bytes of JSON, more than {MOST:,}: damaged")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise FormatError(f"{what}: damaged: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what}: damaged: it holds no JSON object")
    return value


# What an entry has, by its status, and of what type; an int is at least 0.
COMMON = {
    "plan": str,
    "n_in": int,
    "n_ok": int,
    "n_failed": int,
    "failed": list,
    "remarks": list,
    "versions": dict,
    "finished": str,
}
OF_DONE = {"sha256": str, "bytes": int, "tokens": int, "device": str, "host": str}
SPEEDS = ("seconds", "images_per_s")  # of a shard that is done: numbers
ITEM = {"failed": ("key", "code", "message"), "remarks": ("key", "code")}


def _is_entry(entry: dict[str, Any], shard: int) -> bool:
    """Whether all that is read of an entry is of the right type."""
    status = entry.get("status")
    types = {**COMMON, **(OF_DONE if status == DONE else {})}
    return (
        type(entry.get("shard")) is int
        and entry["shard"] == shard
        and status in (DONE, POISONED)
        and all(type(entry.get(name)) is kind for name, kind in types.items())
        and all(entry[name] >= 0 for name, kind in types.items() if kind is int)
        and all(isinstance(text, str) for pair in entry["versions"].items() for text in pair)
        and all(
            isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys)
            for name, keys in ITEM.items()
            for row in entry[name]
        )
        and (all(_is_speed(entry.get(name)) for name in SPEEDS) if status == DONE else bool(entry["failed"]))
    )


def _is_speed(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def state_of(store: Store, shard: int, plan_hash: str) -> tuple[str, dict[str, Any] | None]:
    """(done, poisoned, missing or a word of damage; the entry): whether a shard needs to be made (again)."""
    try:
        entry = read_ledger(store, shard)
    except FormatError:
        return "damaged ledger", None
    if entry is None or entry["plan"] != plan_hash:
        return "missing", None
    if entry["status"] == POISONED:
        return POISONED, entry
    data = store.read(shard_name(shard))
    if data is None:
        return "missing", None
    return (DONE, entry) if sha256(data) == entry["sha256"] else ("damaged shard", None)


def versions_made(entries: Sequence[dict[str, Any]]) -> list[tuple[dict[str, str], int]]:
    """(versions, number of shards that were made under them) of the entries of shards, in the order of the first of each."""
    first: dict[frozenset[tuple[str, str]], dict[str, str]] = {}
    counts: Counter[frozenset[tuple[str, str]]] = Counter()
    for entry in entries:
        same = frozenset(entry["versions"].items())
        first.setdefault(same, entry["versions"])
        counts[same] += 1
    return [(dict(versions), counts[same]) for same, versions in first.items()]


def versions_text(versions: Mapping[str, str], besides: Mapping[str, str] | None = None) -> str:
    """Versions as a line says them; with `besides` only those that differ from these."""
    named = [f"{name} {value}" for name, value in versions.items() if besides is None or besides.get(name) != value]
    return printable(", ".join(named) or "unknown versions", 500)


def states(
    store: Store,
    shards: Sequence[int],
    plan_hash: str,
    log: Callable[[str], None] = lambda _: None,
    versions: Mapping[str, str] | None = None,
) -> tuple[list[int], int, int]:
    """(shards to make, number of shards done, images that failed in these). A shard whose bytes are not those of the ledger
    is to be made again, and `log` is called with a line about it, and with a line where shards are of other `versions` than
    these."""
    missing, done, failed, entries = [], 0, 0, list[dict[str, Any]]()
    for shard in shards:
        state, entry = state_of(store, shard, plan_hash)
        if state == DONE and entry is not None:
            done, failed = done + 1, failed + entry["n_failed"]
            entries.append({"versions": entry["versions"]})
            continue
        missing.append(shard)
        if state not in ("missing", POISONED):
            log(f"{shard_name(shard)}: {state}: it is made anew")
    for other, count in versions_made(entries):
        if versions is not None and other != versions:
            theirs, ours = versions_text(other, versions), versions_text(versions, other)
            log(f"{count} of the shards that are done were made with {theirs}; this is {ours}: {MIXED}")
    return missing, done, failed


def summary(
    store: Store, shards: Sequence[int], plan_hash: str, passed_over: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Counts over the entries of these shards: images `n_in`, `n_ok`, `n_failed`, `failed_by_code`, `remarks`, and `shards`
    with an entry, `of_shards`; and `n_found` = n_in + `n_passed_over`, which are the pictures of `passed_over` (why -> how
    many), of which the plan has no items. `failed` names the first of what failed, as `failures` does."""
    entries = [e for e in (read_ledger(store, shard) for shard in shards) if e is not None and e["plan"] == plan_hash]
    total = {key: sum(entry[key] for entry in entries) for key in ("n_in", "n_ok", "n_failed")}
    return {
        "n_found": total["n_in"] + sum((passed_over or {}).values()),
        **total,
        "n_passed_over": sum((passed_over or {}).values()),
        "passed_over": dict(passed_over or {}),
        "shards": len(entries),
        "of_shards": len(shards),
        "failed_by_code": dict(Counter(failure["code"] for entry in entries for failure in entry["failed"])),
        "failed": failures(entries),
        "remarks": sum(len(entry["remarks"]) for entry in entries),
    }


def failures(entries: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The first 100 images of these entries that failed: {"key", "code", "message"} each."""
    rows = ({name: row[name] for name in ITEM["failed"]} for entry in entries for row in entry["failed"])
    return list(islice(rows, NAMED))
