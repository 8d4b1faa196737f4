"""Tokenises shards of a plan: what one process does, by itself, as a rank among others, or as an actor of Ray.

`Tokenizer.run` makes shards one after the other: pictures are read and decoded in worker processes, and a thread makes
batches of them and copies them to the device, while the codec works on the batch before. Another thread takes its tokens
and writes the finished shards. A shard is committed in two steps, file and ledger, each whole or not at all; made twice it
has the same bytes, so nothing needs to be undone after a kill.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from noisebook.datasets.batches import Batch, Batching, batches, on_device
from noisebook.datasets.decoding import Picture, Requests, decoder_version, requests_for
from noisebook.datasets.ledger import DONE, POISONED, sha256, shard_name, write_ledger
from noisebook.datasets.loader import Workers, ahead
from noisebook.datasets.memory import Share
from noisebook.datasets.plan import Plan
from noisebook.datasets.sources.base import Failure, Item
from noisebook.datasets.store import Store
from noisebook.datasets.table import shard_bytes, token_column, token_column_name, token_count
from noisebook.errors import ImageError, NoisebookError, SpecError, first_line, printable
from noisebook.runtime import __version__
from noisebook.runtime.limits import DEFAULT, Limits

if TYPE_CHECKING:
    import pyarrow as pa

    from noisebook.codec.codec import Codec

FORMAT = 1
DEPTH = 2  # batches that wait for the codec


def versions() -> dict[str, str]:
    """What the bytes of a shard depend on beside rows and specification."""
    return {
        "noisebook": __version__,
        "torch": torch.__version__,
        "pyarrow": version("pyarrow"),
        "decoder": decoder_version(),
    }


@dataclass
class ShardInProgress:
    """What is known of the items of a shard so far: batches with their tokens; and, when they are sorted, by the row of the
    item: tokens int64 [L], (height, width) of the coded image, the picture without its pixels, or the failure."""

    coded: "list[tuple[Batch, np.ndarray | list[np.ndarray | Failure]]]" = field(default_factory=list)
    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[int, Picture] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    begun: float = field(default_factory=time.time)

    def sort(self) -> None:
        """Makes rows of the batches that are `coded`."""
        for batch, tokens in self.coded:
            for row, picture, tokens_of_row in zip(batch.rows, batch.pictures, tokens, strict=True):
                if isinstance(tokens_of_row, Failure):
                    self.failures[row] = tokens_of_row
                else:
                    self.tokens[row], self.sizes[row], self.pictures[row] = tokens_of_row, batch.size, picture
        self.coded = []

    def drop(self, row: int, failure: Failure) -> None:
        self.failures[row] = failure
        del self.tokens[row], self.sizes[row], self.pictures[row]


def _refuse_what_concerns_all(error: Exception, images: Tensor) -> None:
    """Raises what no other image would change: SpecError where memory is short, and what the device says of itself."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
        where = "the device has" if isinstance(error, torch.cuda.OutOfMemoryError) else "there is"
        raise SpecError(
            f"{where} too little memory for {len(images)} images of {list(images.shape[1:])}: give a smaller --batch-size, "
            "or a smaller --memory for a new data set"
        ) from error
    if of_the_device(error):
        raise error
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        raise SpecError(
            f"the network cannot be compiled ({first_line(error)}): tokenise with --no-compile into a new folder"
        ) from error


def of_the_device(error: BaseException) -> bool:
    """Whether a device says of itself that something is wrong: it does nothing more in this process."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


class Tokenizer:
    """Makes shards of `plan` with `codec` into `store`.

    workers     processes that decode pictures
    max_errors  images that may fail, of which `failed` have failed before; None: any number
    tell        is called with (event, fields) after every batch and shard
    limits      of pictures, and the memory that all of this may take
    """

    def __init__(
        self,
        plan: Plan,
        codec: "Codec",
        store: Store,
        workers: int,
        max_errors: int | None = None,
        failed: int = 0,
        tell: Callable[[str, dict[str, Any]], None] = lambda *_: None,
        limits: Limits = DEFAULT,
    ):
        if codec.spec.hash != plan.settings.spec.hash:
            codec = codec.as_recorded(plan.settings.spec)
        if codec.spec.hash != plan.settings.spec.hash:
            raise SpecError("the codec is not the one of the plan")
        self.plan, self.codec, self.store, self.workers = plan, codec, store, workers
        self.max_errors, self.failed, self.tell = max_errors, failed, tell
        self.limits = replace(limits, memory=limits.memory_bytes)  # asked of the machine once
        self.share = Share()  # of that memory; a child of fleet.py has less than all
        size = plan.settings.size
        self.fixed = token_count(codec.spec_for(*size), *size) if size else None

    def run(self, shards: Iterable[int]) -> None:
        """Makes and commits these shards. Raises ImageError when more images have failed than may."""
        settings, device = self.plan.settings, self.codec.device.type
        how = Batching(settings.batch_size, settings.size, settings.batch_pixels, device, self.limits)
        current, pending = ShardInProgress(), None
        share = self.share.limits(self.limits)
        with Workers(self.workers, limits=share) as workers, ThreadPoolExecutor(1, "noisebook-writer") as writer:
            whole = batches(((n, self._requests(n)) for n in shards), workers, how)
            made = ahead(on_device(whole, self.codec.device), DEPTH)
            with contextlib.closing(made):
                for batch in made:
                    if batch.images is not None:
                        current.coded.append((batch, self._encode(batch)))
                        continue
                    current.failures |= batch.failures
                    self._wait(pending)
                    pending, current = writer.submit(self._commit, batch.shard, current), ShardInProgress()
                self._wait(pending)

    def _wait(self, pending: "Future | None") -> None:
        if pending is not None:
            self.count(pending.result())

    def count(self, failed: int) -> None:
        """Adds to the number of images that have failed. Raises ImageError when that is more than may."""
        self.failed += failed
        if self.max_errors is not None and self.failed > self.max_errors:
            raise ImageError(
                f"{self.failed} images failed, more than --max-errors {self.max_errors}: see the ledger in "
                f"{printable(self.store.url)}; what is done stays done"
            )

    def _requests(self, shard: int) -> Requests:
        channels, resize = self.codec.backbone.channels, self.plan.settings.resize
        return requests_for(self.plan.source, self.plan.items(shard), channels, resize, self.limits)

    def _encode(self, batch: Batch) -> "np.ndarray | list[np.ndarray | Failure]":
        """The tokens of a batch, which has no images from then on. Where something is wrong with an image of it, or several,
        they are coded one by one."""
        begin, images = time.perf_counter(), batch.images_there()
        try:
            tokens: Any = self._coded(images)
        except Exception as error:
            _refuse_what_concerns_all(error, images)
            tokens = [self._coded_by_itself(image) for image in images]
        self.tell("batch", {"shard": batch.shard, "images": len(batch.rows), "seconds": time.perf_counter() - begin})
        return tokens

    def _coded(self, images: Tensor) -> np.ndarray:
        with self.share.turn(images.shape, self.codec.device.type, self.limits):
            return self.codec.encode(images).cpu().numpy()

    def _coded_by_itself(self, image: Tensor) -> np.ndarray | Failure:
        try:
            return self._coded(image[None])[0]
        except NoisebookError as error:
            return Failure("codec", f"{type(error).__name__}: {first_line(error)}")
        except Exception as error:
            _refuse_what_concerns_all(error, image[None])
            if isinstance(error, ValueError) and "dimensions" in str(error):  # of the codebook: more than 2^24
                return Failure("codec", f"the picture is too large for the codebook: {first_line(error)}: give --resize")
            return Failure("fault", f"a fault of noisebook: {type(error).__name__}: {first_line(error)}")

    def _commit(self, shard: int, made: ShardInProgress) -> int:
        """Writes the shard, then its ledger entry; returns how many of its images failed."""
        items = list(self.plan.items(shard))  # one by one, rows of columns are slow
        made.sort()
        carried = self._carried(items, made)
        data = self._bytes(shard, items, made, carried)
        self.store.write(shard_name(shard), data)
        seconds = time.time() - made.begun
        entry = self._entry(shard, DONE, made.failures) | {
            "remarks": [
                {"key": items[row].key, "code": code} for row in sorted(made.pictures) for code in made.pictures[row].remarks
            ],
            "sha256": sha256(data),
            "bytes": len(data),
            "tokens": sum(len(t) for t in made.tokens.values()),
            "seconds": round(seconds, 3),
            "images_per_s": round(len(items) / seconds, 3),
        }
        write_ledger(self.store, shard, entry)
        self.tell("shard", {k: v for k, v in entry.items() if k not in ("failed", "remarks")})
        return entry["n_failed"]

    def poison(self, shard: int, reason: str) -> int:
        """Gives a shard up: every item fails, and the ledger says why. Returns how many; a resumed run tries it again."""
        failures = {row: Failure("poisoned", reason) for row in range(len(self.plan.items(shard)))}
        write_ledger(self.store, shard, self._entry(shard, POISONED, failures))
        return len(failures)

    def _carried(self, items: list[Item], made: ShardInProgress) -> "pa.Table":
        """The columns that go along. A row whose own cannot be read (any more) fails, and the others stay."""
        import pyarrow as pa

        source = self.plan.source
        unreadable = (pa.ArrowException, OSError, ValueError)
        with contextlib.suppress(*unreadable):
            return source.carried([items[row] for row in sorted(made.tokens)])
        for row in sorted(made.tokens):
            try:
                source.carried([items[row]])
            except unreadable as error:
                made.drop(row, Failure.of_reading(error, "what goes along with it: "))
        return source.carried([items[row] for row in sorted(made.tokens)])

    def _bytes(self, shard: int, items: list[Item], made: ShardInProgress, carried: "pa.Table") -> bytes:
        import pyarrow as pa

        rows, spec = sorted(made.tokens), self.codec.spec
        keys = [items[row].key for row in rows]
        tokens, sizes = [made.tokens[row] for row in rows], [made.sizes[row] for row in rows]
        pictures = [made.pictures[row] for row in rows]
        columns = {
            "key": pa.array(keys, pa.string()),
            token_column_name(spec): token_column(tokens, spec, sizes, self.fixed),
            "height": pa.array([size[0] for size in sizes], pa.int32()),
            "width": pa.array([size[1] for size in sizes], pa.int32()),
            "original_height": pa.array([p.height for p in pictures], pa.int32()),
            "original_width": pa.array([p.width for p in pictures], pa.int32()),
        }
        return shard_bytes(columns, carried, self._footer(shard))

    def _footer(self, shard: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "plan": self.plan.hash,
            "shard": shard,
            "shards": self.plan.shards,
            "versions": versions(),
            "spec_hash": self.codec.spec.hash.hex(),
            **self.plan.settings.as_dict(),
        }

    def _entry(self, shard: int, status: str, failures: dict[int, Failure]) -> dict[str, Any]:
        items, device = self.plan.items(shard), self.codec.backbone.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        failed = [{"key": items[row].key, "code": f.code, "message": f.message} for row, f in sorted(failures.items())]
        counts = {"n_in": len(items), "n_ok": len(items) - len(failed), "n_failed": len(failed)}
        return {
            "shard": shard,
            "status": status,
            "plan": self.plan.hash,
            **counts,
            "failed": failed,
            "remarks": [],
            "device": f"{device} ({name})",
            "threads": torch.get_num_threads(),
            "host": platform.node(),
            "process": os.getpid(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
        }
