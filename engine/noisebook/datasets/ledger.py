"""What became of every item: one JSON file per shard, written after the shard, so that where it is, the shard is."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from noisebook.datasets.store import Store
from noisebook.errors import FormatError

SHARDS, LEDGER = "shards", "ledger"
DONE, POISONED = "done", "poisoned"


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
    """The entry of a shard, None where there is none. Raises FormatError for a damaged one."""
    data = store.read(ledger_name(shard))
    if data is None:
        return None
    try:
        both = json.loads(data)
        entry = both["entry"]
        if both["sha256_of_entry"] == _digest(entry) and entry["shard"] == shard:
            return entry
    except (ValueError, KeyError, TypeError):
        pass
    raise FormatError(f"{store.url}/{ledger_name(shard)}: damaged: remove it, and resume")


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


def states(
    store: Store, shards: Sequence[int], plan_hash: str, log: Callable[[str], None] = lambda _: None
) -> tuple[list[int], int, int]:
    """(shards to make, number of shards done, images that failed in these). A shard whose bytes are not those of the ledger
    is to be made again, and `log` is called with a line about it."""
    missing, done, failed = [], 0, 0
    for shard in shards:
        state, entry = state_of(store, shard, plan_hash)
        if state == DONE and entry is not None:
            done, failed = done + 1, failed + entry["n_failed"]
            continue
        missing.append(shard)
        if state not in ("missing", POISONED):
            log(f"{shard_name(shard)}: {state}: it is made anew")
    return missing, done, failed


def summary(store: Store, shards: Sequence[int], plan_hash: str) -> dict[str, Any]:
    """Counts over the entries of these shards: images `n_in`, `n_ok`, `n_failed`, `failed_by_code`, `remarks`, and `shards`
    with an entry, `of_shards`."""
    entries = [e for e in (read_ledger(store, shard) for shard in shards) if e is not None and e["plan"] == plan_hash]
    total = {key: sum(entry[key] for entry in entries) for key in ("n_in", "n_ok", "n_failed")}
    return {
        **total,
        "shards": len(entries),
        "of_shards": len(shards),
        "failed_by_code": dict(Counter(failure["code"] for entry in entries for failure in entry["failed"])),
        "remarks": sum(len(entry["remarks"]) for entry in entries),
    }
