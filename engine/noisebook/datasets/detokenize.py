"""A tokenised data set back to pictures."""

import errno
import json
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from noisebook.datasets import memory
from noisebook.datasets.ledger import read_json_object, shard_name
from noisebook.datasets.names import TAKEN, PictureNames, folds
from noisebook.datasets.reader import TokenDataset
from noisebook.datasets.sources.base import Failure
from noisebook.datasets.store import LOCK, Store
from noisebook.errors import CodecMismatchError, DatasetError, FormatError, NoisebookError, first_line, printable
from noisebook.images.files import check_decode, pixels_of, refuse_costly
from noisebook.images.io import png_bytes
from noisebook.runtime.atomic import write_bytes
from noisebook.runtime.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec

MARKER = ".noisebook-detokenize.json"  # says whose pictures a folder holds
DIALLED = ("realism", "realism_network")  # what the marker has more where realism is above 0
NAMED = 10_000  # failures that are named; the others are counted
NAME_ERRORS = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.ELOOP)  # of one name, not of the disk


def detokenize(
    data: TokenDataset,
    codec: "Codec",
    output: Path,
    batch_size: int = 32,
    first: int | None = None,
    steps: int | None = None,
    tell: Callable[[int], Any] = lambda _: None,
    limits: Limits = DEFAULT,
    realism: float = 0.0,
) -> dict[str, Any]:
    """Writes the pictures of the first `first` images (None: of all) into the folder `output`, batch by batch of one size.
    An image goes to its key, if that ends in .png, else to KEY.png; see `PictureNames` for names that meet, also those that
    differ in case only where the folder takes them for one.

    The folder is new, empty, or holds pictures of the same data set, codec, steps and realism, as its marker says. Files
    that are there are not written again, so that the same call goes on where it was stopped. `steps`: only the first steps
    of each.
    `tell` is called with the number of images after each batch. `limits`: `pixels` and
    `network_calls` of a decode; a batch is smaller than
    `batch_size` where `memory` asks for it. `realism`: from 0 to 1, as of `Codec.decode`, which also says what it raises.

    Returns {"written", "skipped", "n_failed", "failed_by_code", "failed": [{"key", "code", "message"}]}: an image whose key
    cannot be a name there (bad_key, taken, name_too_long), or that is too_large, fails, and the others are written; of more
    than 10,000 failures the first are listed.

    Raises CodecMismatchError for another codec, FormatError for one whose decode takes more than `limits.network_calls`,
    DatasetError for a folder that holds something else."""
    if codec.spec.hash != data.spec.hash:
        codec = codec.as_recorded(data.spec)
    if codec.spec.hash != data.spec.hash:
        raise CodecMismatchError(f"the tokens are of codec {data.spec.hash.hex()}, not {codec.spec.hash.hex()}")
    check_decode(data.spec, 1, 1, limits, steps, realism)  # what a decode of any size takes
    about = {"plan": data.plan.hash, "codec": codec.spec.hash.hex(), "steps": steps}
    if dial := codec.dial(realism, steps):
        about |= dict(zip(DIALLED, (dial.realism, dial.name), strict=True))
    _refuse_foreign(output, about)
    store = Store(os.path.abspath(output))
    with store.lock():
        if not _refuse_foreign(output, about):
            store.write(MARKER, (json.dumps({"noisebook": "detokenize", **about}, indent=1) + "\n").encode())
        store.collect_strays(("",))
        run = _Run(data, codec, output, batch_size, limits, steps, realism)
        for batch in run.batches(len(data) if first is None else min(first, len(data))):
            store.refuse_moved()
            run.write(batch)
            tell(len(batch))
    return {"written": run.written, "skipped": run.skipped, **run.failures()}


def _refuse_foreign(output: Path, about: dict[str, Any]) -> bool:
    """Whether the folder has a marker. Raises DatasetError where it holds something else than these pictures."""
    shown = printable(output)
    try:
        names = os.listdir(output)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise DatasetError(f"{shown}: cannot be a folder of pictures: {why}") from error
    if MARKER in names:
        try:
            found = read_json_object(Store(os.path.abspath(output)).read(MARKER) or b"", MARKER)
        except NoisebookError as error:
            raise DatasetError(f"{shown}: {error}: choose another -o") from error
        if any(name not in found or found[name] != value for name, value in about.items() if name not in DIALLED):
            raise DatasetError(
                f"{shown}: it holds pictures of another data set, codec or number of steps: choose another -o"
            )
        if any(found.get(name) != about.get(name) for name in DIALLED):
            raise DatasetError(f"{shown}: it holds pictures of another realism or realism network: choose another -o")
        return True
    if foreign := sorted(set(names) - {LOCK, f"{LOCK}-0"}):
        raise DatasetError(f"{shown}: something else is there ({printable(foreign[0], 100)}): choose an empty folder")
    return False


def decoded(
    codec: "Codec", rows: Sequence[dict[str, Any]], steps: int | None = None, limits: Limits = DEFAULT, realism: float = 0.0
) -> np.ndarray:
    """Pictures uint8 [B, H, W, C] of rows of one size, decoded in all steps or only the first `steps`, with that `realism`.
    Raises FormatError as `refuse_costly`, and as `Codec.decode`."""
    size = rows[0]["height"], rows[0]["width"]
    refuse_costly(codec, size, limits, steps, realism)
    tokens = torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64))
    return pixels_of(codec.decode(tokens, size, steps, realism))


Batch = list[tuple[Path, dict[str, Any]]]  # rows of one size, and where each goes


class _Run:
    """What is written, there already, and failed so far."""

    def __init__(
        self,
        data: TokenDataset,
        codec: "Codec",
        output: Path,
        batch_size: int,
        limits: Limits,
        steps: int | None,
        realism: float,
    ):
        self.data, self.codec, self.output, self.batch_size, self.limits = data, codec, output, batch_size, limits
        self.steps, self.realism = steps, realism
        self.refusals: dict[tuple[int, int], str] = {}  # why images of a size are not decoded
        self.names = PictureNames(folds(output, MARKER))
        self.written = self.skipped = 0
        self.by_code: Counter[str] = Counter()
        self.failed: list[dict[str, str]] = []

    def batches(self, count: int) -> Iterator[Batch]:
        """The first `count` rows, shard by shard, those that are left to write."""
        buckets: dict[tuple[int, int], Batch] = {}
        for row, name, problem in self._rows(count):
            size = row["height"], row["width"]
            path, failure = self._place(name, problem, *size)
            if failure is not None:
                self.fail(row["key"], failure)
            elif path is None:
                self.skipped += 1
            else:
                buckets.setdefault(size, []).append((path, row))
                if len(buckets[size]) == self._batch(*size):
                    yield buckets.pop(size)
        yield from buckets.values()

    def _rows(self, count: int) -> Iterator[tuple[dict[str, Any], str, str]]:
        """(row, its picture's name, why it has none) of the first `count` rows. All items of the plan have a name, also
        those that failed or are not done yet: so it never changes."""
        done = {entry["shard"]: entry for entry in self.data.done}
        for shard in range(self.data.plan.shards):
            if count <= 0:
                return
            rows = deque(self.data.read(done[shard]) if shard in done else ())
            for item in self.data.plan.items(shard):
                name, problem = self.names(item.key)
                if rows and rows[0]["key"] == item.key:
                    if count > 0:
                        yield rows.popleft(), name, problem
                    count -= 1
            if rows and count > 0:
                raise FormatError(f"{shard_name(shard)}: its keys are not those of the plan: noisebook verify says more")

    def _batch(self, height: int, width: int) -> int:
        most = memory.coded_pixels(self.limits, self.codec.device.type)
        return max(1, min(self.batch_size, most // (height * width)))

    def _place(self, name: str, problem: str, height: int, width: int) -> tuple[Path | None, Failure | None]:
        """(where an image goes; None: it is there. Why it cannot be written.)"""
        if problem:
            return None, Failure("taken" if problem == TAKEN else "bad_key", problem)
        if refusal := self._refusal(height, width):
            return None, Failure("too_large", refusal)
        path = self.output / name
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return path, None
        except OSError as error:
            return None, _of_name(error)
        return None, None if stat.S_ISREG(mode) else Failure("taken", "something that is no file has its name")

    def _refusal(self, height: int, width: int) -> str:
        """Why images of that size are not decoded; empty where they are."""
        size = height, width
        if size not in self.refusals:
            self.refusals[size] = ""
            try:
                refuse_costly(self.codec, size, self.limits, self.steps, self.realism)
            except FormatError as error:
                self.refusals[size] = str(error)
        return self.refusals[size]

    def write(self, batch: Batch) -> None:
        """Decodes rows and writes their pictures. Raises NoisebookError where none can be written."""
        pictures = decoded(self.codec, [row for _, row in batch], self.steps, self.limits, self.realism)
        for (path, row), pixels in zip(batch, pictures, strict=True):
            try:
                write_bytes(path, png_bytes(pixels), replace=False)
                self.written += 1
            except NoisebookError as error:
                cause = error.__cause__
                if not isinstance(cause, OSError) or cause.errno not in (*NAME_ERRORS, errno.EEXIST, None):
                    raise
                self.fail(row["key"], _of_name(cause))

    def fail(self, key: str, failure: Failure) -> None:
        self.by_code[failure.code] += 1
        if len(self.failed) < NAMED:
            self.failed.append({"key": key, "code": failure.code, "message": failure.message})

    def failures(self) -> dict[str, Any]:
        return {"n_failed": self.by_code.total(), "failed_by_code": dict(self.by_code), "failed": self.failed}


def _of_name(error: OSError) -> Failure:
    """What is wrong with one name. Raises DatasetError for what is wrong with the folder."""
    if error.errno == errno.ENAMETOOLONG:
        return Failure("name_too_long", "the file system takes no name of that length")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, None):
        return Failure("taken", "its name, or a folder in it, is there already as something else")
    if error.errno in NAME_ERRORS:
        return Failure("bad_key", f"the file system does not take its name: {error.strerror}")
    raise DatasetError(f"{printable(error.filename)}: cannot be written: {error.strerror}") from error
