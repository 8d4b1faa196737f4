"""Is a data set whole? Offline, without a model."""

from typing import Any

from noisebook.datasets.ledger import POISONED, SHARDS, read_ledger, sha256, shard_name
from noisebook.datasets.plan import Plan
from noisebook.datasets.store import Store
from noisebook.datasets.table import check_tokens, read_shard, tokens_of
from noisebook.errors import FormatError, NoisebookError


def check(folder: str) -> dict[str, Any]:
    """Reads all of a data set: {"shards", "n_in", "n_ok", "n_failed", "problems": [{"name", "error"}], "complete"}.

    Of every shard: the ledger's own hash, the file's SHA-256, page checksums, that keys are those of the plan in its order
    without the failed ones, n_in = n_ok + n_failed, and that every token is below its vocab_size. Raises FormatError where
    there is no data set, or its plan is damaged.
    """
    store = Store(folder)
    plan = Plan.load(store)
    if plan is None:
        raise FormatError(f"{folder}: there is no plan.json: not a data set of noisebook's, or never begun")
    out: dict[str, Any] = {"shards": 0, "n_in": 0, "n_ok": 0, "n_failed": 0, "problems": [], "of_shards": plan.shards}
    for shard in range(plan.shards):
        name = shard_name(shard)
        try:
            entry = read_ledger(store, shard)
            if entry is None or entry["status"] == POISONED:
                why = "not made yet" if entry is None else f"given up: {entry['failed'][0]['message']}"
                out["problems"].append({"name": name, "error": f"{why}: tokenize --resume"})
                continue
            _check_shard(plan, shard, entry, store.read(name), name)
        except NoisebookError as error:
            out["problems"].append({"name": name, "error": f"{type(error).__name__}: {error}"})
            continue
        out["shards"] += 1
        for key in ("n_in", "n_ok", "n_failed"):
            out[key] += entry[key]
    known = {shard_name(n).split("/")[1] for n in range(plan.shards)}
    for extra in sorted(set(store.names(SHARDS)) - known):
        out["problems"].append({"name": f"{SHARDS}/{extra}", "error": "not a shard of the plan: remove it"})
    return {**out, "complete": out["shards"] == plan.shards and not out["problems"]}


def _check_shard(plan: Plan, shard: int, entry: dict[str, Any], data: bytes | None, name: str) -> None:
    def require(good: bool, what: str) -> None:
        if not good:
            raise FormatError(f"{name}: {what}: tokenize --resume makes it anew")

    items = plan.items(shard)
    require(entry["plan"] == plan.hash, "it is of another plan")
    require(data is not None, "it is gone")
    assert data is not None
    require(sha256(data) == entry["sha256"], "damaged (SHA-256)")
    table, footer = read_shard(data, name)
    require((footer["plan"], footer["shard"]) == (plan.hash, shard), "it is another shard, or of another plan")
    failed = {failure["key"] for failure in entry["failed"]}
    keys = [item.key for item in items if item.key not in failed]
    require(table["key"].to_pylist() == keys, "its keys are not those of the plan without the failed ones")
    require(entry["n_in"] == len(items) == entry["n_ok"] + entry["n_failed"], "its counts do not add up")
    require((entry["n_ok"], entry["n_failed"]) == (len(keys), len(failed)), "its counts are not those of its rows")
    spec = plan.settings.spec
    sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
    for tokens, (height, width) in zip(tokens_of(table, spec), sizes, strict=True):
        check_tokens(tokens, spec, height, width, name)
