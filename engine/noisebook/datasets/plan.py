"""What is to be done, written down before it begins: the items in their order, cut in shards, and the settings, hashed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from noisebook.datasets.ledger import sha256
from noisebook.datasets.plan_tables import read_table, table_bytes
from noisebook.datasets.sources import SOURCES, Source
from noisebook.datasets.sources.base import Files, Item, Items
from noisebook.datasets.sources.rows import bounds
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, FormatError, NoisebookError, first_line, printable
from noisebook.runtime.factories import is_factory
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.spec.spec import CodecSpec

PLAN, ITEMS, FILES = "plan.json", "plan-items.parquet", "plan-files.parquet"
VERSION = 2  # of the plans that are written; those of version 1 are read and resumed with the items that they record
VERSIONS = (1, 2)
LATER = {
    "batch_pixels": None,
    "image_suffix": "",
    "drop_columns": [],
}  # settings that older plans do not know: not written where they say this
FACTORY = "factory"  # what a plan calls the factory of its backbone; not there where there is none
COUNTS = ("passed_over", "other_files")  # of what is no item: beside the plan, no part of its hash


@dataclass(frozen=True)
class PlanSettings:
    """All that shards depend on beside the input.

    size          (height, width) of every image; None: they have several
    batch_pixels  pixels of a batch at most, which memory asked for; None, and not written down: no bound
    image_suffix  the ending of the pictures that are taken, `depth.png`; empty, and not written down: as the rules say
    drop_columns  columns of the input that do not go along, by name; empty, and not written down: all do
    """

    spec: CodecSpec
    shard_size: int
    batch_size: int
    resize: int
    size: tuple[int, int] | None
    network: dict[str, str] = field(default_factory=dict)  # `CodecRecipe.network`: how it computes, and its conditions
    batch_pixels: int | None = None
    image_suffix: str = ""
    drop_columns: Sequence[str] = ()

    def as_dict(self) -> dict:
        """As plans and footers hold it."""
        values = {**asdict(self), "spec": json.loads(self.spec.to_json()), "size": self.size and list(self.size)}
        values["drop_columns"] = sorted(set(self.drop_columns))
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    @classmethod
    def of_dict(cls, values: dict) -> "PlanSettings":
        spec, size = CodecSpec.from_json(json.dumps(values["spec"])), values["size"] and tuple(values["size"])
        settings = cls(**{**values, "spec": spec, "size": size})
        numbers = [(settings.shard_size, 1), (settings.batch_size, 1), (settings.resize, 0), *((n, 1) for n in size or ())]
        if any(type(n) is not int or n < least for n, least in numbers) or len(size or (1, 1)) != 2:
            raise ValueError("a size that cannot be")
        if settings.batch_pixels is not None and (type(settings.batch_pixels) is not int or settings.batch_pixels < 1):
            raise ValueError("batch_pixels that cannot be")
        if not isinstance(settings.image_suffix, str):
            raise ValueError("an image_suffix that is no text")
        if not isinstance(settings.drop_columns, list | tuple) or not all(isinstance(n, str) for n in settings.drop_columns):
            raise ValueError("drop_columns that are no names")
        if not all(isinstance(text, str) for pair in settings.network.items() for text in pair):
            raise ValueError("the network is described by what is no text")
        return settings


class Plan:
    """A source cut in shards of `shard_size` items under some settings. `version`: of the rules that made the source;
    `factory`: MODULE:FACTORY of the backbone, where a user's own made it, which is shown and never imported."""

    def __init__(self, source: Source, settings: PlanSettings, version: int = VERSION, factory: str = ""):
        self.source, self.settings, self.version, self.factory = source, settings, version, factory
        self.shards = -(-len(source.items) // settings.shard_size)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of settings and items: equal for equal names, sizes and places, wherever the input lies."""
        digest = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode())
        for text in self._files.json(("name", "size")):
            digest.update(text)
        for text in self.source.items.json(list(Items.fields)):
            digest.update(text)
        return digest.hexdigest()

    @cached_property
    def stamp(self) -> str:
        """SHA-256 (hex) of the files' versions: a touched file changes it."""
        digest = hashlib.sha256(b"[")
        between = 2  # bytes of the comma that the first has not
        for text in self._files.json(("name", "stamp"), before=", "):
            digest.update(text[between:])
            between = 0
        digest.update(b"]")
        return digest.hexdigest()

    @cached_property
    def _files(self) -> Files:
        files = self.source.files
        return files if isinstance(files, Files) else Files.of(files)

    def items(self, shard: int) -> Sequence[Item]:
        """The items of a shard."""
        size = self.settings.shard_size
        return self.source.items[shard * size : (shard + 1) * size]

    def _about(self) -> dict:
        source = self.source
        return {
            "version": self.version,
            "settings": self.settings.as_dict(),
            "kind": source.kind,
            "columns": source.columns,
            "image_column": source.image_column,
        }

    def _summary(self) -> dict:
        return {"hash": self.hash, "stamp": self.stamp, "items": len(self.source.items), "shards": self.shards}

    def _made_by(self) -> dict:
        """For people, and no part of the hash: a module may move, and its backbone has the fingerprint."""
        return {FACTORY: self.factory} if self.factory else {}

    def _counts(self) -> dict:
        """What was passed over, and `n_found`: the images of the plan, and the pictures that were passed over."""
        counts: dict = {name: getattr(self.source, name) for name in COUNTS}
        passed_over = sum(self.source.passed_over.values())
        return {**counts, "n_passed_over": passed_over, "n_found": len(self.source.items) + passed_over}

    def save(self, store: Store, limits: Limits = DEFAULT) -> None:
        """Writes the plan; `plan.json` last, so that where it is, all is. Raises DatasetError for one that `load` would
        refuse."""
        tables = {ITEMS: table_bytes(self.source.items), FILES: table_bytes(self._files)}
        try:
            for name, kind in ((ITEMS, Items), (FILES, Files)):
                read_table(kind, tables[name], (), limits)
        except FormatError as error:
            raise DatasetError(f"the plan would not be read again ({error}): cut the input in several data sets") from error
        for name, data in tables.items():
            store.write(name, data)
        about = {**self._about(), **self._made_by(), **self._summary(), **self._counts()}
        about["sha256"] = {name: sha256(data) for name, data in tables.items()}
        store.write(PLAN, (json.dumps(about, indent=1) + "\n").encode())

    def record(self, store: Store, n_ok: int, n_failed: int) -> None:
        """Adds the counts of all shards to `plan.json`, for people: n_found = n_ok + n_failed + n_passed_over. No reader
        needs them, and plans of version 1 stay as they are."""
        text = store.read(PLAN)
        about = json.loads(text) if text else {}
        new = {**about, "n_ok": n_ok, "n_failed": n_failed}
        if self.version > 1 and about.get("hash") == self.hash and new != about:
            store.write(PLAN, (json.dumps(new, indent=1) + "\n").encode())

    @classmethod
    def load(cls, store: Store, limits: Limits = DEFAULT) -> "Plan | None":
        """The plan of a data set; None where there is none. Its files have no place: what a plan records is never opened.
        `limits`: `rows` of its tables. Raises FormatError for a damaged one, and one that cannot be."""
        text = store.read(PLAN)
        if text is None:
            return None
        try:
            about = json.loads(text)
            if about["version"] not in VERSIONS:
                version = printable(about["version"], 20)
                raise _Newer(f"{printable(store.url)}: its plan is of version {version}, newer than this noisebook")
            settings, factory = PlanSettings.of_dict(about["settings"]), about.get(FACTORY, "")
            if not isinstance(factory, str) or not (is_factory(factory) or factory == ""):
                raise ValueError("a factory that is no MODULE:FACTORY")
            plan = cls(_source(store, about, limits), settings, about["version"], factory)
            recorded = {name: about[name] for name in plan._summary()}
            if plan.version > 1 and any(about[name] != value for name, value in plan._counts().items()):
                raise ValueError("its counts do not add up")
        except _Newer:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, NoisebookError) as error:
            raise FormatError(
                f"{printable(store.url)}: its plan is damaged ({first_line(error)}): tokenise into a new folder"
            ) from error
        if recorded != plan._summary():
            raise FormatError(
                f"{printable(store.url)}: its plan does not match its hash: it is damaged; tokenise into a new folder"
            )
        return plan

    def refuse_unless_same(self, other: "Plan", where: str) -> None:
        """Raises DatasetError where `other`, made of what is there now, is not this plan."""
        if self.hash != other.hash:
            mine, new = self.settings.as_dict(), other.settings.as_dict()
            changed = [name for name in mine if mine[name] != new.get(name)] or [name for name in new if name not in mine]
            if self.source.kind == other.source.kind and self.source.image_column != other.source.image_column:
                changed.append("image_column")
            what = (
                f"its settings differ ({', '.join(changed)})"
                if changed
                else f"the input has changed ({len(self.source.items)} items then, {len(other.source.items)} now)"
            )
            if self.factory and self.factory != other.factory:
                what += f"; it was begun with --backbone {printable(self.factory)}"
            raise DatasetError(f"{printable(where)}: {what}: give what it was begun with, or tokenise into a new folder")
        if self.stamp != other.stamp:
            old = {f.name: f.stamp for f in self.source.files}
            names = [printable(f.name, 100) for f in other.source.files if old.get(f.name) != f.stamp]
            raise DatasetError(
                f"{printable(where)}: the input has changed since ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
                ": tokenise into a new folder"
            )


class _Newer(FormatError):
    """A plan of a newer noisebook."""


def _source(store: Store, about: dict[str, Any], limits: Limits) -> Source:
    """What a plan says of its source, as far as it can be. Raises ValueError, KeyError, TypeError."""
    kind, columns, image_column = SOURCES[about["kind"]], about["columns"], about["image_column"]
    if not isinstance(image_column, str) or not all(isinstance(t, str) for pair in columns.items() for t in pair):
        raise ValueError("its columns have no names")
    tables: dict[str, bytes] = {}
    for name in (ITEMS, FILES):
        data = store.read(name)
        if data is None or sha256(data) != about["sha256"][name]:
            raise ValueError(f"{name}: missing, or damaged where no page checksum is")
        tables[name] = data
    items = read_table(Items, tables[ITEMS], (), limits)
    files = read_table(Files, tables[FILES], ("path",), limits)
    if len(items) != about["items"]:
        raise ValueError("it has another number of items")
    least = {"file": 0, "start": 0, "size": -1}
    most = {"file": len(files) - 1}
    for name, lower in least.items():
        for low, high in map(bounds, items.column(name)):
            if low < lower or high > most.get(name, high):
                raise ValueError(f"an item has the {name} {low if low < lower else high:,}")
    if any(bounds(column)[0] < 0 for column in files.column("size")):
        raise ValueError("a file has a size below 0")
    counts: list[dict[str, int]] = [about[name] if about["version"] > 1 else {} for name in COUNTS]
    if any(type(n) is not int or n < 0 for count in counts for n in count.values()):
        raise ValueError("a count that cannot be")
    return kind(files, items, columns, image_column, *counts)
