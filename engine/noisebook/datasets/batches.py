"""Batches of equal size, in an order that depends on the plan only."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from noisebook.datasets import memory
from noisebook.datasets.decoding import Picture, Request, Requests
from noisebook.datasets.loader import Workers
from noisebook.datasets.sources.base import Failure
from noisebook.runtime.limits import DEFAULT, Limits

WAIT = 8  # times the bound of a batch that may wait in buckets of many sizes
NO_PIXELS = np.empty((0, 0, 0), np.uint8)


@dataclass
class Batch:
    """Images of one size, uint8 [B, C, H, W], and the rows of the shard's items that they are; their pictures have no pixels
    any more. No images: the shard is complete."""

    shard: int
    rows: list[int]
    images: Tensor | None
    pictures: list[Picture]
    failures: dict[int, Failure]


@dataclass(frozen=True)
class Batching:
    """What makes a batch: as the plan says, so that a shard that is made twice has the same bytes.

    batch_size    images of a batch at most
    size          the (height, width) of all images, others fail; None: any
    batch_pixels  pixels of a batch at most, unless one image has more; of images of other sizes that wait for their batch
                  `WAIT` times that many. None: no bound
    device        kind of device where the codec works, and whether batches are pinned for it
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

    answers = workers.map(requests())
    first = next(answers, None)
    while started:
        shard, count = started.popleft()
        buckets: dict[tuple[int, ...], list[tuple[int, Picture]]] = {}
        failures: dict[int, Failure] = {}
        waiting = 0  # pixels in the buckets
        for row in range(count):
            answer, first = (first, None) if first is not None else (next(answers), None)
            if isinstance(answer, Picture):
                answer = how.refusal(*answer.pixels.shape[:2]) or answer
            if isinstance(answer, Failure):
                failures[row] = answer
                continue
            shape = answer.pixels.shape
            bucket = buckets.setdefault(shape, [])
            bucket.append((row, answer))
            waiting += shape[0] * shape[1]
            full = shape if len(bucket) == how.count(shape[0] * shape[1]) else None
            while full or how.overflows(waiting):
                full = full or max(buckets, key=lambda shape: len(buckets[shape]) * shape[0] * shape[1])
                bucket = buckets.pop(full)
                waiting -= len(bucket) * full[0] * full[1]
                full = None
                yield _batch(shard, bucket, how.device == "cuda")
        for bucket in buckets.values():
            yield _batch(shard, bucket, how.device == "cuda")
        yield Batch(shard, [], None, [], failures)
        if not started:  # the next shard's requests may not have been drawn yet
            first = next(answers, None)


def _batch(shard: int, bucket: list[tuple[int, Picture]], pin: bool) -> Batch:
    height, width, channels = bucket[0][1].pixels.shape
    images = torch.empty(len(bucket), channels, height, width, dtype=torch.uint8, pin_memory=pin)
    for i, (_, picture) in enumerate(bucket):
        images.numpy()[i] = picture.pixels.transpose(2, 0, 1)
    pictures = [replace(picture, pixels=NO_PIXELS) for _, picture in bucket]
    return Batch(shard, [row for row, _ in bucket], images, pictures, {})
