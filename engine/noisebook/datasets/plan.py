"""What is to be done, written down before it begins: the items in their order, cut in shards, and the settings, hashed."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain

from noisebook.datasets.ledger import sha256
from noisebook.datasets.sources import SOURCES, Source
from noisebook.datasets.sources.base import File, Item
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, FormatError
from noisebook.spec.spec import CodecSpec

PLAN, ITEMS, FILES = "plan.json", "plan-items.parquet", "plan-files.parquet"
VERSION = 1


@dataclass(frozen=True)
class PlanSettings:
    """All that shards depend on beside the input. `size`: (height, width) of every image; None: they have several."""

    spec: CodecSpec
    shard_size: int
    batch_size: int
    resize: int
    size: tuple[int, int] | None
    network: dict[str, str] = field(default_factory=dict)  # `CodecRecipe.network`: how it computes, and its conditions

    def as_dict(self) -> dict:
        """As plans and footers hold it."""
        return {**asdict(self), "spec": json.loads(self.spec.to_json()), "size": self.size and list(self.size)}

    @classmethod
    def of_dict(cls, values: dict) -> "PlanSettings":
        spec, size = CodecSpec.from_json(json.dumps(values["spec"])), values["size"] and tuple(values["size"])
        return cls(**{**values, "spec": spec, "size": size})


class Plan:
    """A source cut in shards of `shard_size` items under some settings."""

    def __init__(self, source: Source, settings: PlanSettings):
        self.source, self.settings = source, settings
        self.shards = -(-len(source.items) // settings.shard_size)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of settings and items: equal for equal names, sizes and places, wherever the input lies."""
        digest = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode())
        for row in chain(((f.name, f.size) for f in self.source.files), (_row(item) for item in self.source.items)):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    @cached_property
    def stamp(self) -> str:
        """SHA-256 (hex) of the files' versions: a touched file changes it."""
        return hashlib.sha256(json.dumps([(f.name, f.stamp) for f in self.source.files]).encode()).hexdigest()

    def items(self, shard: int) -> Sequence[Item]:
        """The items of a shard."""
        size = self.settings.shard_size
        return self.source.items[shard * size : (shard + 1) * size]

    def _about(self) -> dict:
        source = self.source
        return {
            "version": VERSION,
            "settings": self.settings.as_dict(),
            "kind": source.kind,
            "columns": source.columns,
            "image_column": source.image_column,
        }

    def _summary(self) -> dict:
        return {"hash": self.hash, "stamp": self.stamp, "items": len(self.source.items), "shards": self.shards}

    def save(self, store: Store) -> None:
        """Writes the plan; `plan.json` last, so that where it is, all is."""
        tables = {ITEMS: _table(Item, self.source.items), FILES: _table(File, self.source.files)}
        for name, data in tables.items():
            store.write(name, data)
        about = {**self._about(), **self._summary(), "sha256": {name: sha256(data) for name, data in tables.items()}}
        store.write(PLAN, (json.dumps(about, indent=1) + "\n").encode())

    @classmethod
    def load(cls, store: Store) -> "Plan | None":
        """The plan of a data set; None where there is none. Raises FormatError for a damaged one."""
        text = store.read(PLAN)
        if text is None:
            return None
        try:
            about = json.loads(text)
            if about["version"] != VERSION:
                raise FormatError(f"{store.url}: its plan is of version {about['version']}, newer than this noisebook")
            items, files = (
                _rows(kind, store.read(name), about["sha256"][name]) for kind, name in ((Item, ITEMS), (File, FILES))
            )
            source = SOURCES[about["kind"]](files, items, about["columns"], about["image_column"])
            plan = cls(source, PlanSettings.of_dict(about["settings"]))
            recorded = {name: about[name] for name in plan._summary()}
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, FormatError) and "newer" in str(error):
                raise
            raise FormatError(f"{store.url}: its plan is damaged: tokenise into a new folder") from error
        if recorded != plan._summary():
            raise FormatError(f"{store.url}: its plan does not match its hash: it is damaged; tokenise into a new folder")
        return plan

    def refuse_unless_same(self, other: "Plan", where: str) -> None:
        """Raises DatasetError where `other`, made of what is there now, is not this plan."""
        if self.hash != other.hash:
            mine, new = self.settings.as_dict(), other.settings.as_dict()
            changed = [name for name in mine if mine[name] != new[name]]
            what = (
                f"its settings differ ({', '.join(changed)})"
                if changed
                else f"the input has changed ({len(self.source.items)} items then, {len(other.source.items)} now)"
            )
            raise DatasetError(f"{where}: {what}: give what it was begun with, or tokenise into a new folder")
        if self.stamp != other.stamp:
            old = {f.name: f.stamp for f in self.source.files}
            names = [f.name for f in other.source.files if old.get(f.name) != f.stamp]
            raise DatasetError(
                f"{where}: the input has changed since ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
                ": tokenise into a new folder"
            )


def _row(item: Item) -> tuple:
    return (item.key, item.file, item.start, item.size, item.ending, item.extra, item.problem)


def _table(kind: type, rows: Sequence) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"str": pa.string(), "int": pa.int64()}
    columns = {
        name: pa.array([getattr(row, name) for row in rows], types[getattr(f.type, "__name__", f.type)])
        for name, f in kind.__dataclass_fields__.items()
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, write_page_checksum=True, compression="zstd")
    return buffer.getvalue()


def _rows(kind: type, data: bytes | None, digest: str) -> list:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if data is None or sha256(data) != digest:
        raise ValueError("missing, or damaged where no page checksum is")
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    names = list(kind.__dataclass_fields__)
    return [kind(*values) for values in zip(*(table[name].to_pylist() for name in names), strict=True)]
