"""What a process that decodes pictures does: it is sent requests as plain values, and puts pixels in shared memory."""

import gc
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from noisebook.datasets.decoding import Answer, Picture, Request, answer_to
from noisebook.datasets.slab import Slab
from noisebook.datasets.sources.base import File, Item
from noisebook.datasets.sources.places import Place as Where
from noisebook.runtime.limits import Limits

_slab: Slab | None = None  # of this process


class Parcel(NamedTuple):
    """Requests on their way: objects are slow to pack, values are not. `files`: of their items, each once; `rows`: (number
    of its file, bytes or None or Failure, the item's values) of each."""

    channels: int
    resize: int
    limits: Limits
    files: list[tuple[Any, ...]]
    rows: list[tuple[int, Any, tuple[Any, ...]]]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "Parcel | None":
        """None of no requests. All have the same limits, channels and size."""
        if not requests:
            return None
        numbers: dict[int, int] = {}
        files: list[tuple[Any, ...]] = []
        rows: list[tuple[int, Any, tuple[Any, ...]]] = []
        for request in requests:
            file, item = request.file, request.item
            number = numbers.get(id(file))
            if number is None:
                number = numbers[id(file)] = len(files)
                where = file.place
                there = None if where is None else (where.url, where.path)
                files.append((file.path, file.name, file.size, file.stamp, file.problem, there))
            rows.append((number, request.data, item[:]))  # a plain tuple
        first = requests[0]
        return cls(first.channels, first.resize, first.limits, files, rows)

    def requests(self) -> Iterator[Request]:
        files = [File(a, b, size, stamp, problem, at and Where(*at)) for a, b, size, stamp, problem, at in self.files]
        for number, data, values in self.rows:
            yield Request(Item(*values), files[number], data, self.channels, self.resize, self.limits)


class Placed(NamedTuple):
    """Pictures that follow each other, also in the slab, and differ in their pixels only: where they begin there, how many
    they are, the shape [H, W, C] of each, and what `Picture` says."""

    start: int
    count: int
    shape: tuple[int, ...]
    height: int
    width: int
    remarks: tuple[str, ...]


Sent = Answer | Placed  # of one request each, or of several


def serve(
    parcel: Parcel | None, share: int | None = None, most: int | None = None, part: tuple[int, int] | None = None
) -> list[Sent]:
    """What a worker answers: as `answer_to` for each request, or, with `most`, for the first ones, at least one, whose
    pixels take that many bytes. A picture that fits is put into the `part` (first byte, bytes) of the slab."""
    answers: list[Sent] = []
    held = 0
    start, end = (0, 0) if part is None or _slab is None else (part[0], sum(part))
    for request in parcel.requests() if parcel else ():
        answer = answer_to(request, share, by_planes=True)
        if isinstance(answer, Picture):
            size, about = answer.pixels.nbytes, (answer.pixels.shape, *answer[1:])
            held += size
            if _slab is not None and size <= end - start:
                _slab.put(answer.pixels, start)
                last, answer = answers[-1] if answers else None, Placed(start, 1, *about)
                start += size
                if isinstance(last, Placed) and last[2:] == about:
                    answers.pop()
                    answer = Placed(last.start, last.count + 1, *about)
        answers.append(answer)
        if most is not None and held >= most:
            break
    return answers


def watch_parent(slab: Slab | None = None) -> None:
    """Begins a process that works for another: ends it when that one is gone, also when it was killed. `slab`: the memory
    that they share."""
    import multiprocessing

    global _slab
    _slab = slab
    gc.freeze()  # what is there by now stays: the collector need not look at it again
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
