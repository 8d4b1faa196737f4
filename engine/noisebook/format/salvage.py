"""What is left of a damaged `.nbk` file: its header, as far as it makes sense, and the tokens that are there.

Nothing here is for whole files, and nothing is refused because a checksum fails; each fault is said in words.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from noisebook.errors import FormatError
from noisebook.format.container import (
    FLAG_DERIVED,
    FLAG_SCALED,
    FLAG_SPEC,
    FORMAT_VERSION,
    HEADER,
    MAGIC,
    MAX_SPEC,
    Container,
    group_size,
    packed_bits,
    unpack_plain,
)
from noisebook.format.derived import derived_of, read_derived
from noisebook.format.refusals import refuse
from noisebook.format.robust import FLAG_ROBUST, SIZES, sealed
from noisebook.format.runs import Run
from noisebook.format.sets import unpack_sets

MAGIC_BITS = 2  # of the 16 that may be wrong


class Wreck(NamedTuple):
    """What is left of a file.

    head     what its header says; its payload is empty
    body     what follows the header: the payload and `tail` bytes after it, if nothing is missing
    faults   what is wrong, in words; none of a file that is whole
    exact    whether nothing may be missing, for else the header would not make sense
    """

    head: Container
    body: bytes
    tail: int
    faults: list[str]
    exact: bool = False


def wreck_of(data: bytes) -> Wreck:
    """The header and the rest of a file that may be damaged. Raises FormatError where its header makes no sense."""
    try:
        whole = Container.from_bytes(data)
    except FormatError as error:
        matches = len(data) >= 4 and data == sealed(data[:-4])
        faults = [str(error) if matches else "the checksum does not match"]
    else:
        return Wreck(replace(whole, payload=b""), whole.payload, 0, [])
    for size in SIZES.values():  # of a header that was sent twice: the first copy, and, where the end is there, the last
        for at in (0, len(data) - size - 8):
            head = data[max(at, 0) :][: size + 4]
            if at < 0 or head != sealed(head[:size]) or not head[2] & FLAG_ROBUST or SIZES.get(head[2] & 7) != size:
                continue
            if at:
                faults.append("the header is damaged, its copy at the end is not")
            return Wreck(_head(head, faults), data[size + 4 :], size + 8, faults)
    if len(data) < HEADER.size:
        refuse("few", size=len(data))
    head = _head(data, faults)
    if head.robust:
        faults.append("both copies of the header are damaged, and the first one makes sense")
        size = SIZES[data[2] & 7]
        return Wreck(head, data[size + 4 :], size + 8, faults, exact=True)
    if head.spec_json is not None:
        _, body = _unpacked(data[HEADER.size + 4 :])
        return Wreck(head, body, 4, faults)
    return Wreck(head, data[SIZES[data[2] & 7] :], 4, faults)


def _head(data: bytes, faults: list[str]) -> Container:
    """The header that begins a file. Raises FormatError where it makes no sense; what does in spite of damage is added to
    `faults`."""
    magic, version, preset, codec_hash, height, width = HEADER.unpack_from(data)
    version, flags = divmod(version, 16)
    if wrong := (int.from_bytes(magic) ^ int.from_bytes(MAGIC)).bit_count():
        if wrong > MAGIC_BITS:
            refuse("magic")
        faults.append("the magic bytes are damaged")
    kind = flags & ~FLAG_ROBUST
    if version != FORMAT_VERSION or (kind not in SIZES and flags != FLAG_SPEC):
        refuse("version", version=version, flags=flags)
    if not height or not width:
        refuse("size")
    derived, spec_json = None, None
    if kind & FLAG_DERIVED:
        derived = derived_of(*read_derived(data, HEADER.size, len(data) - HEADER.size, bool(kind & FLAG_SCALED))[:3])
    if kind == FLAG_SPEC:
        spec_json, _ = _unpacked(data[HEADER.size + 4 :])
    return Container(codec_hash, height, width, b"", preset, spec_json, derived, bool(flags & FLAG_ROBUST))


def _unpacked(packed: bytes) -> tuple[bytes, bytes]:
    """(an embedded specification, what follows it). zlib says where it ends, and checks it, so that its length in the header
    need not be right. Raises FormatError where it is damaged."""
    unpacker = zlib.decompressobj()
    try:
        spec_json = unpacker.decompress(packed, MAX_SPEC)
    except zlib.error as error:
        raise FormatError("the embedded specification is damaged: without it nothing can be decoded") from error
    if not unpacker.eof:
        raise FormatError("the embedded specification is cut off, or damaged: without it nothing can be decoded")
    return spec_json, unpacker.unused_data


def tokens_left(payload: bytes, runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a payload that may end early: (int64 [L], bool [L]: which of them are lost, because their bits are
    missing or no token packs to them). Padding may hold anything.

    Runs that are range-coded are not for this: their tokens are lost from the first wrong bit on."""
    runs = [Run(*run) for run in runs]
    total = sum(run.count for run in runs)
    out, lost, bit, at = np.zeros(total, np.int64), np.zeros(total, np.bool_), 0, 0
    padded = payload.ljust(-(-packed_bits(runs) // 8), b"\0")
    for run in runs:
        places = slice(at, at + run.count)
        size = run.subset or group_size(run.vocab_size)
        read = unpack_sets if run.subset else unpack_plain
        end = read(padded, bit, run, out[places], lost[places])
        there = 8 * len(payload) - bit  # bits of this run
        if there < end - bit:
            width = packed_bits([run._replace(count=size)])
            lost[places][max(0, there // width) * size :] = True
        bit, at = end, at + run.count
    return out, lost
