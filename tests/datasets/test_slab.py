"""Decoded pictures travel through shared memory without a name, in order, and no copy of one is taken for another."""

import contextlib
import io
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")
if os.name != "posix":
    pytest.skip("memory is shared on POSIX", allow_module_level=True)

from noisebook.datasets import decoding, worker
from noisebook.datasets.batches import Batch, Batching, batches, on_device
from noisebook.datasets.decoding import Picture, Request, read_bytes
from noisebook.datasets.loader import Block, Workers
from noisebook.datasets.slab import Slab
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.sources.base import Failure, File, Item
from noisebook.datasets.worker import Parcel
from noisebook.runtime.limits import Limits

MIB = 1 << 20
LIMITS = Limits(memory=1 << 30)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def requests_of(images):
    data = [image if isinstance(image, bytes) else png(image) for image in images]
    file = File("x", "x", 0, "")
    return [Request(Item(f"{i}.png", 0), file, x, 3, 0, LIMITS) for i, x in enumerate(data)]


@pytest.fixture
def images(fresh):
    """Runs of equal sizes, and one file that is none."""
    sizes = [(9, 8)] * 5 + [(120, 110)] * 2 + [(9, 8)] * 20 + [(20, 7)]
    pictures = [fresh.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return [*pictures[:3], b"no picture", *pictures[3:]]


def test_equal_pictures_are_answered_together_and_what_does_not_fit_by_itself(monkeypatch, images):
    slab = Slab(2, MIB)
    monkeypatch.setattr(worker, "_slab", slab)
    parcel = Parcel.of(requests_of(images))
    first, failure, second, large, *rest = worker.serve(parcel, None, None, (MIB, 60_000))
    assert (first.count, failure.code, second.count, large.count) == (3, "not_an_image", 2, 1)
    assert first[:3] == (MIB, 3, (9, 8, 3))
    assert isinstance(rest[0], Picture)  # the second large one has no room, smaller ones after it have
    assert [part.count for part in rest[1:]] == [20, 1]
    planes = slab.planes(second.start, second.count, second.shape)
    assert all((a == b.transpose(2, 0, 1)).all() for a, b in zip(planes, images[4:6], strict=True))
    assert worker.serve(parcel, None, None)[0].pixels.shape == (9, 8, 3)
    slab.close()


@pytest.mark.parametrize("count", [0, 2])
def test_blocks_are_the_answers_of_map(images, count):
    with Workers(count) as workers:
        answers = list(workers.map(iter(requests_of(images))))
    with Workers(count) as workers:
        blocks = [(b.planes.copy(), b.height) if isinstance(b, Block) else b for b in workers.blocks(requests_of(images))]
    assert len(answers) == len(images)
    for answer, image in zip(answers, images, strict=True):
        assert isinstance(answer, Failure) if isinstance(image, bytes) else (answer.pixels == image).all()
    pictures = [planes for b in blocks if isinstance(b, tuple) for planes in b[0]]
    good = [image for image in images if not isinstance(image, bytes)]
    assert all((a == b.transpose(2, 0, 1)).all() for a, b in zip(pictures, good, strict=True))


def test_batches_do_not_depend_on_workers(images):
    def made(count, how):
        class Counted(list):
            pass

        work = [(n, Counted(requests_of(part))) for n, part in enumerate((images[:7], [], images[7:], images[:1]))]
        with Workers(count) as workers:
            return [
                (b.shard, b.rows, None if b.images is None else b.images.numpy().tobytes(), b.failures)
                for b in batches(work, workers, how)
            ]

    for how in (Batching(4, (9, 8)), Batching(4, None, 300)):
        assert made(0, how) == made(1, how)
    rows = [rows for shard, rows, pixels, _ in made(0, Batching(4)) if shard == 2 and pixels]
    assert sorted(row for part in rows for row in part) == list(range(len(images) - 7))


def mapped():
    return [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "noisebook (" in line]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_has_no_name_and_goes_with_the_workers(images):
    with Workers(1) as workers:
        blocks = workers.blocks(requests_of(images))
        next(blocks)
        assert mapped() == ["/memfd:noisebook (deleted)"]
        del blocks
    assert not mapped()


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_mixed_up(fresh):
    images = [fresh.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(200)]
    with Workers(2) as workers:
        answers = workers.map(iter(requests_of(images)))
        found = [next(answers) for _ in range(9)]
        for pid in list(workers._pool._processes):
            os.kill(pid, signal.SIGKILL)
        found += answers
        assert len(workers._slab.free) == workers._slab.parts
    assert all((a.pixels == x).all() for a, x in zip(found, images, strict=True))


def test_without_shared_memory_pixels_are_sent(images, monkeypatch):
    monkeypatch.setattr("noisebook.datasets.loader.slab_for", lambda *_: None)
    with Workers(1) as workers:
        answers = list(workers.map(iter(requests_of(images))))
    assert (
        sum((a.pixels == x).all() for a, x in zip(answers, images, strict=True) if isinstance(a, Picture)) == len(images) - 1
    )


def test_a_parcel_holds_a_file_once(tmp_path):
    file = File("a.tar", "a.tar", 9, "9 1.0")
    requests = [Request(Item(f"{i}", 0, i, 1, ".png"), file, None, 3, 8, Limits()) for i in range(3)]
    parcel = Parcel.of(requests)
    assert len(parcel.files) == 1
    assert list(parcel.requests()) == requests
    assert Parcel.of([]) is None


def test_a_file_that_grows_or_goes_while_it_is_read_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"0123456789")
    source = enumerate_inputs([str(path)])
    file, item = source.files[0], source.items[0]
    assert read_bytes(file, item) == b"0123456789"
    pread = os.pread

    def and_grow(handle, count, at):
        data = pread(handle, count, at)
        with open(path, "ab") as f:
            f.write(b"more")
        return data

    monkeypatch.setattr(decoding.os, "pread", and_grow)
    assert read_bytes(file, item).code == "changed"
    path.unlink()
    assert read_bytes(file, item).code == "missing"
    os.mkfifo(path)
    assert read_bytes(file, item).code == "changed"  # and does not wait for somebody to write


class Stream:
    """Stands for a stream of CUDA's: it writes down what happens."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_event(self):
        return f"event of {self.name}"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for the {event}")


class Images:
    """Stands for a pinned batch, and for its copy on the device."""

    device = "cuda"

    def __init__(self, log, full=False):
        self.log, self.full = log, full

    def to(self, device, non_blocking):
        if self.full:
            raise torch.cuda.OutOfMemoryError
        self.log.append(f"copied, {'not ' * non_blocking}waiting")
        return Images(self.log)

    def record_stream(self, stream):
        self.log.append(f"held for {stream.name}")


def test_batches_are_copied_to_cuda_on_a_stream_of_their_own(monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(log.append(f"on {stream.name}")))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("work", log))
    given = [Batch(0, [0], Images(log), [], {}), Batch(0, [1], Images(log, full=True), [], {}), Batch(0, [], None, [], {})]
    host = given[1].images
    made = on_device(iter(given), torch.device("cuda"))
    first = next(made)
    assert log == ["on copies", "copied, not waiting"]
    first.images_there()
    assert log[2:] == ["work waits for the event of copies", "held for work"]
    assert first.images is None
    second = next(made)
    assert (second.images, second.copied) == (host, None)  # too little memory: the codec says so, in its words
    assert next(made).images is None
    assert [b.copied for b in on_device([Batch(0, [0], Images(log), [], {})], torch.device("cpu"))] == [None]
