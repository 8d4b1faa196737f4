"""A tokenised data set as a data set of torch: map-style, or a stream for ranks and workers."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from noisebook.datasets.collating import collate
from noisebook.datasets.decoding import Picture, answer_to, requests_for
from noisebook.datasets.ledger import DONE, ledger_name, read_ledger, sha256, shard_name, shards_with_entry, versions_made
from noisebook.datasets.plan import Plan
from noisebook.datasets.sources import Source, located
from noisebook.datasets.sources.base import Failure, Item, Items
from noisebook.datasets.sources.located import Inputs
from noisebook.datasets.store import Store
from noisebook.datasets.table import Vocabularies, largest_vocabulary, read_shard, tokens_of
from noisebook.errors import DatasetError, FormatError, ImageError, SpecError, printable
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.spec.spec import CodecSpec

KEPT = 16  # shards held in memory
Dtype = str | type | np.dtype | torch.dtype | None  # of tokens


class Row(dict[str, Any]):
    """A row of a data set: a dict that torch's own `default_collate` puts in batches as `collate` does, nulls included."""


# The way that torch documents for types of one's own. `default_collate` of other rows stays as it is.
default_collate_fn_map[Row] = lambda batch, *, collate_fn_map=None: collate(batch)


class _Shards:
    """What both kinds of data set share: the folder, its plan and ledgers, and reading shards with their checks."""

    def __init__(self, folder: str, partial: bool, limits: Limits = DEFAULT, dtype: Dtype = None):
        self.folder = str(folder)
        self.store, self.limits = Store(self.folder), limits
        plan = Plan.load(self.store, limits)
        if plan is None:
            raise DatasetError(f"{printable(folder)}: not a data set of noisebook's: there is no plan.json")
        self.plan = plan
        entries = [read_ledger(self.store, shard) for shard in shards_with_entry(self.store, plan.shards)]
        self.ledgers = [e for e in entries if e is not None and e["plan"] == plan.hash]
        for entry in self.ledgers:
            if not entry["n_in"] == len(plan.items(entry["shard"])) == entry["n_ok"] + entry["n_failed"]:
                name = ledger_name(entry["shard"])
                raise FormatError(f"{printable(folder)}/{name}: its counts are not those of the plan: remove it, and resume")
        self.done = [e for e in self.ledgers if e["status"] == DONE]
        if len(self.done) < plan.shards and not partial:
            raise DatasetError(
                f"{printable(folder)}: {len(self.done)} of {plan.shards} shards are done: tokenize --resume, or take "
                "what is there (partial=True, --partial)"
            )
        self.dtype = None if dtype is None else _integer(dtype, largest_vocabulary(self.spec))

    @property
    def spec(self) -> CodecSpec:
        """The codec of all tokens."""
        return self.plan.settings.spec

    @property
    def provenance(self) -> dict[str, str]:
        """Versions of noisebook, torch, pyarrow and the image decoder that made the shards. Where a run was resumed under
        others, all of each, in the order of shards, joined by " and "; `versions` says which belong together."""
        made = [versions for versions, _ in self.versions]
        names = dict.fromkeys(name for versions in made for name in versions)
        return {name: " and ".join(dict.fromkeys(v[name] for v in made if name in v)) for name in names}

    @property
    def versions(self) -> list[tuple[dict[str, str], int]]:
        """(versions, number of shards that were made under them), in the order of the first shard of each."""
        return versions_made(self.done)

    def read(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a shard. Raises FormatError where its bytes are not those of the ledger."""
        name = shard_name(entry["shard"])
        data = self.store.read(name)
        if data is None:
            raise DatasetError(f"{printable(self.folder)}/{name}: it is gone: tokenize --resume makes it anew")
        if sha256(data) != entry["sha256"]:
            raise FormatError(f"{printable(self.folder)}/{name}: damaged: tokenize --resume makes it anew")
        table, _ = read_shard(data, name, limits=self.limits)
        tokens = tokens_of(table, self.spec, self.limits)
        rest = table.drop_columns(["payload" if "payload" in table.column_names else "tokens"]).to_pylist()
        return [{**row, "tokens": tokens_of_row} for row, tokens_of_row in zip(rest, tokens, strict=True)]

    def checked(self, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """As `read`, for those who trust no token: raises FormatError for one that is none of the codec's."""
        known = Vocabularies(self.spec, shard_name(entry["shard"]), self.limits)
        for row in self.read(entry):
            known.check(row["tokens"], row["height"], row["width"])
            yield row

    def own(self, row: dict[str, Any]) -> Row:
        """A row as the caller may change it: nothing of it is shared with what is held here, and tokens are of `dtype`."""
        tokens = row["tokens"]
        kept = {name: copy.deepcopy(value) if isinstance(value, list | dict) else value for name, value in row.items()}
        return Row({**kept, "tokens": tokens.astype(tokens.dtype if self.dtype is None else self.dtype)})


class TokenDataset(_Shards, Dataset):
    """A tokenised data set, map-style: `ds[i]` is a dict of `key`, `tokens` (unsigned numpy [L]), `height`, `width` (of the
    coded image), `original_height`, `original_width` and the columns that were carried through, such as `label`.

    Any index at any time: a shard is read once and checked against the ledger's SHA-256, the last `kept` are held. Ranks
    share it by torch's DistributedSampler. A row is the caller's own, to change as they like.

    A DataLoader puts rows in batches as `noisebook.datasets.collate` does, also with its default `collate_fn`.

    partial  only the shards that are done
    inputs   where the pictures are that were tokenised, for `original`: the folder or files that were given then, or a copy
             of them, or several, local or URLs. The data set itself does not say it: a path that it records is never opened.
    limits   `rows` of its plan, `pixels` of an image (also of what `original` reads), `work` of reading a shard's tokens
    dtype    of the tokens: an integer type of numpy or torch that holds them, such as "int64" (default: as they are stored,
             the smallest unsigned one)

    Raises SpecError for another dtype, DatasetError where there is no data set or it is not complete, or an input is not
    there; FormatError for a damaged plan or shard.
    """

    def __init__(
        self,
        folder: str,
        partial: bool = False,
        kept: int = KEPT,
        inputs: Inputs | None = None,
        limits: Limits = DEFAULT,
        dtype: Dtype = None,
    ):
        super().__init__(folder, partial, limits, dtype)
        self.kept = kept
        self._source: Source | None = None if inputs is None else located(self.plan.source, inputs)
        self._ends = np.cumsum([entry["n_ok"] for entry in self.done])
        self._cache: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} images")
        index = int(index) % len(self)
        place = int(np.searchsorted(self._ends, index, side="right"))
        rows = self._rows(place)
        return self.own(rows[index - (int(self._ends[place - 1]) if place else 0)])

    def _rows(self, place: int) -> list[dict[str, Any]]:
        if place in self._cache:
            self._cache.move_to_end(place)
            return self._cache[place]
        rows = self._cache[place] = self.read(self.done[place])
        while len(self._cache) > self.kept:
            self._cache.popitem(last=False)
        return rows

    def __getstate__(self) -> dict[str, Any]:  # for workers of a DataLoader: they read for themselves
        return {**self.__dict__, "_cache": OrderedDict()}

    def original(self, index: int) -> np.ndarray:
        """The image that was tokenised, uint8 [H, W, C], read again from `inputs` and resized as it was. Raises ImageError
        where it is gone or has changed, DatasetError where no `inputs` were given, IndexError."""
        if self._source is None:
            raise DatasetError(
                f"{printable(self.folder)}: say where the pictures are, TokenDataset(..., inputs=FOLDER): what a data set "
                "records of it is never opened"
            )
        item = self._item(index)
        (request,) = requests_for(self._source, [item], 3, self.plan.settings.resize, self.limits)
        answer = answer_to(request)
        if isinstance(answer, Failure):
            raise ImageError(f"{printable(item.key, 200)}: {printable(answer.message)}")
        assert isinstance(answer, Picture)
        return answer.pixels

    def _item(self, index: int) -> Item:
        """The plan's item of an image. Raises FormatError where it has none."""
        key = self[index]["key"]
        place = int(np.searchsorted(self._ends, int(index) % len(self), side="right"))
        items = self.plan.items(self.done[place]["shard"])
        assert isinstance(items, Items)
        start = 0
        for column in items.column("key"):
            keys = column.to_pylist()
            if key in keys:
                return items[start + keys.index(key)]
            start += len(keys)
        raise FormatError(f"{printable(self.folder)}: {printable(key, 200)} is no key of its plan")


class TokenStream(_Shards, IterableDataset):
    """A tokenised data set as a stream of the rows of `TokenDataset`, each exactly once over all ranks and workers of a
    DataLoader. They share it shard by shard, so that their lengths differ by up to a shard.

    shuffle      the order of shards, and of the rows in each, by `seed` and `set_epoch`
    rank, world  the share of one rank; default: torch.distributed's where it is initialised, else all
    dtype        of the tokens, as of `TokenDataset`
    """

    def __init__(
        self,
        folder: str,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        partial: bool = False,
        dtype: Dtype = None,
    ):
        super().__init__(folder, partial, dtype=dtype)
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.rank, self.world = _ranks() if rank is None or world is None else (rank, world)

    def set_epoch(self, epoch: int) -> None:
        """Another order of the shuffle."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Row]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.done)) if self.shuffle else np.arange(len(self.done))
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for place in order[self.rank :: self.world][worker::workers]:
            rows = self.read(self.done[place])
            if self.shuffle:
                rng = np.random.default_rng([self.seed, self.epoch, int(place)])
                rows = [rows[i] for i in rng.permutation(len(rows))]
            yield from map(self.own, rows)


def _integer(dtype: Dtype, vocab_size: int) -> np.dtype:
    """The type of numpy. Raises SpecError for what is no integer type, and for one that not every token fits."""
    name: Any = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    try:
        kind: np.dtype[Any] = np.dtype(name)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "iu":
        raise SpecError(f"dtype must be an integer type, such as int64, not {printable(dtype, 60)}")
    if np.iinfo(kind.name).max < vocab_size - 1:
        raise SpecError(f"dtype {kind} does not hold every token: there are values up to {vocab_size - 1:,}")
    return kind


def _ranks() -> tuple[int, int]:
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


__all__ = ["Row", "TokenDataset", "TokenStream"]
