"""Batches of equal size, in an order that depends on the plan only."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisebook.datasets import memory
from noisebook.datasets.decoding import Picture, Request, Requests
from noisebook.datasets.loader import Block, Workers
from noisebook.datasets.sources.base import Failure
from noisebook.runtime.limits import DEFAULT, Limits

WAIT = 8  # times the bound of a batch that may wait in buckets of many sizes
NO_PIXELS = np.empty((0, 0, 0), np.uint8)


@dataclass
class Batch:
    """Images of one size, uint8 [B, C, H, W], and the rows of the shard's items that they are; their pictures have no pixels
    any more; `size` is (height, width). No images: the shard is complete. `copied`: an event of the device after which the
    images are there."""

    shard: int
    rows: list[int]
    images: Tensor | None
    pictures: list[Picture]
    failures: dict[int, Failure]
    copied: Any = None
    size: tuple[int, int] = (0, 0)

    def images_there(self) -> Tensor:
        """The images, when they are where the codec is; the batch itself has none from then on."""
        images, self.images = self.images, None
        assert images is not None
        if self.copied is not None:
            current = torch.cuda.current_stream(images.device)
            current.wait_event(self.copied)
            images.record_stream(current)  # their memory is not given away before the codec is done with it
        return images


@dataclass(frozen=True)
class Batching:
    """What makes a batch: as the plan says, so that a shard that is made twice has the same bytes.

    batch_size    images of a batch at most
    size          the (height, width) of all images, others fail; None: any
    batch_pixels  pixels of a batch at most, unless one image has more; of images of other sizes that wait for their batch
                  `WAIT` times that many. None: no bound
    device        kind of device where the codec works: for `cuda` batches are pinned
    limits        of this run: an image that cannot be coded in `memory` fails
    """

    batch_size: int
    size: tuple[int, int] | None = None
    batch_pixels: int | None = None
    device: str = "cpu"
    limits: Limits = DEFAULT

    def count(self, pixels: int) -> int:
        """Images of that many pixels in a batch."""
        if pixels > memory.LARGE_FROM:
            return 1
        return self.batch_size if self.batch_pixels is None else max(1, min(self.batch_size, self.batch_pixels // pixels))

    def overflows(self, waiting: int) -> bool:
        """Whether that many pixels are too many to wait."""
        return self.batch_pixels is not None and waiting > WAIT * self.batch_pixels

    def refusal(self, height: int, width: int) -> Failure | None:
        """Why an image of that size cannot be coded."""
        if self.size and (height, width) != self.size:
            there = f"{height} x {width}; the first ones have {self.size[0]} x {self.size[1]}"
            return Failure("other_size", f"{there}: give --resize, or --mixed-sizes")
        if (bytes_needed := memory.needed(height * width, self.device)) > self.limits.memory_bytes:
            wanted = memory.size_text(bytes_needed)
            return Failure(
                "too_large", f"{height} x {width} pixels take too much memory to be coded: --memory {wanted} is enough"
            )
        return None


def batches(shards: Iterable[tuple[int, Requests]], workers: Workers, how: Batching) -> Iterator[Batch]:
    """The images of each shard in batches, a bucket for each (height, width): in the order of the items, and at the end of
    the shard what is left in the buckets. What a batch holds depends on its shard only. After them comes a batch without
    images, with the failures."""
    started: deque[tuple[int, int]] = deque()  # (shard, number of its items), as the requests are drawn

    def requests() -> Iterator[Request]:
        for shard, requests_of_shard in shards:
            started.append((shard, len(requests_of_shard)))
            yield from requests_of_shard

    blocks = workers.blocks(requests())
    block = next(blocks, None)
    while started:
        shard, count = started.popleft()
        buckets: dict[tuple[int, ...], Bucket] = {}
        failures: dict[int, Failure] = {}
        waiting = 0  # pixels in the buckets
        row = 0
        while row < count:
            block = block or next(blocks)
            if isinstance(block, Failure):
                failures[row] = block
                block, row = None, row + 1
                continue
            channels, *size = block.planes.shape[1:]
            shape = (*size, channels)
            pixels = shape[0] * shape[1]
            if (bucket := buckets.get(shape)) is None:
                if (refusal := how.refusal(*shape[:2])) is not None:
                    failures[row] = refusal
                    block, row = block.after(1), row + 1
                    continue
                bucket = buckets[shape] = Bucket(shape, how.count(pixels), how)
            taken = 1 if how.batch_pixels is not None else min(len(block.planes), bucket.room, count - row)
            bucket.add(row, taken, block)  # at once: the pixels are there only until the next block
            block, row = block.after(taken), row + taken
            waiting += taken * pixels
            full = shape if not bucket.room else None
            while full or how.overflows(waiting):
                full = full or max(buckets, key=lambda shape: len(buckets[shape].rows) * shape[0] * shape[1])
                bucket = buckets.pop(full)
                waiting -= len(bucket.rows) * full[0] * full[1]
                full = None
                yield bucket.batch(shard)
        for bucket in buckets.values():
            yield bucket.batch(shard)
        yield Batch(shard, [], None, [], failures)
        if block is None and not started:  # the next shard's requests may not have been drawn yet
            block = next(blocks, None)


class Bucket:
    """Images of one `shape`, [H, W, C], that wait for their batch, at most `most`. Where all images of the data set have
    that shape, the memory of the batch is there from the beginning; otherwise it grows."""

    def __init__(self, shape: tuple[int, ...], most: int, how: Batching):
        self.most, self.pin = most, how.device == "cuda"
        self.rows: list[int] = []
        self.pictures: list[Picture] = []
        self._pinned = self.pin and how.size is not None
        height, width, channels = shape
        self._images = self._empty(most if how.size else min(most, 4), channels, height, width)
        self._memory = self._images.numpy()

    def _empty(self, count: int, channels: int, height: int, width: int) -> Tensor:
        return torch.empty(count, channels, height, width, dtype=torch.uint8, pin_memory=self._pinned)

    @property
    def room(self) -> int:
        """Images that it takes still."""
        return self.most - len(self.rows)

    def add(self, row: int, count: int, block: Block) -> None:
        """Copies the pixels of the first `count` of a block, which are rows `row`, `row` + 1, ..."""
        begin, end = len(self.rows), len(self.rows) + count
        if end > len(self._memory):
            there = self._images
            self._images = self._empty(min(self.most, 2 * end), *block.planes.shape[1:])
            self._images[: len(there)] = there
            self._memory = self._images.numpy()
        self._memory[begin:end] = block.planes[:count]
        self.rows += range(row, row + count)
        self.pictures += [Picture(NO_PIXELS, block.height, block.width, block.remarks)] * count

    def batch(self, shard: int) -> Batch:
        """The images of the bucket, which takes no more."""
        images = self._images[: len(self.rows)]
        if self.pin and not self._pinned:
            images = images.pin_memory()
        height, width = images.shape[2:]
        return Batch(shard, self.rows, images, self.pictures, {}, size=(height, width))


def on_device(made: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; those for CUDA are copied there on a stream of their own, while the codec works on another."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in made:
        if stream is not None and batch.images is not None:
            with contextlib.suppress(torch.cuda.OutOfMemoryError), torch.cuda.stream(stream):  # the codec has the words
                batch.images, batch.copied = batch.images.to(device, non_blocking=True), stream.record_event()
        yield batch
