"""The `.nbk` file: 20 or 24 bytes of header and checksum around packed tokens. docs/format.md is the specification.

    offset  bytes
    0       2   magic B7 4E
    2       1   format version (high 4 bits), flags (low 4 bits): 1 = the specification is embedded, 2 = it is derived,
                4 = from a curve that is scaled, 8 = the header is sent twice (format/robust.py)
    3       1   preset number, 0 = none; if derived the curve's number
    4       8   codec hash: first 8 bytes of the SHA-256 of the specification's canonical JSON
    12      4   height and width of the image, uint16 little-endian each, 1 ... 65535
    16      -   if embedded: uint32 little-endian length, then the specification as zlib-compressed canonical JSON
    16      4   if derived: steps and tokens; if scaled, a byte more (format/derived.py)
    -       -   packed tokens
    end-4   4   CRC-32C of everything before, little-endian

No torch here: numpy arrays and bytes. This is the definition; csrc/nbk.cpp does the same for checksum, frame and plain runs.
"""

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisebook.errors import FormatError, SpecError
from noisebook.format.cost import MAX_CODED, check_cost
from noisebook.format.crc import crc32c
from noisebook.format.derived import UNSCALED, Derived, derived_bytes, derived_of, read_derived, scaling_of
from noisebook.format.entropy import decode_runs, encode_symbols, least_bytes
from noisebook.format.refusals import refuse
from noisebook.format.robust import unwrapped, wrapped
from noisebook.format.runs import Run
from noisebook.format.sets import subset_bits, subset_rank, unpack_sets
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.runtime.native import native

MAGIC = b"\xb7N"
FORMAT_VERSION = 1
FLAG_SPEC, FLAG_DERIVED, FLAG_SCALED = 1, 2, 4
TOGETHER = (0, FLAG_SPEC, FLAG_DERIVED, FLAG_DERIVED | FLAG_SCALED)  # flags that a file may have
HEADER = struct.Struct("<2sBB8sHH")
OVERHEAD = HEADER.size + 4  # bytes of header and checksum: 20
MAX_FILE = 1 << 28  # bytes; nothing larger is read
MAX_SPEC = 1 << 22  # bytes of an embedded specification, unpacked
CHUNK = 1 << 16  # groups of a plain run that are taken apart at once


# ---- packing ------------------------------------------------------------------------------------------------------------
def group_size(vocab_size: int) -> int:
    """How many base-V digits share one group: 1 where V is a power of two, else as many as fit 63 bits."""
    if vocab_size & (vocab_size - 1) == 0:
        return 1
    size, product = 1, vocab_size
    while product * vocab_size < 1 << 63:
        size, product = size + 1, product * vocab_size
    return size


def _group_bits(vocab_size: int, digits: int) -> int:
    return (vocab_size**digits - 1).bit_length()


Runs = Sequence[Run] | Sequence[tuple[int, int]]  # of plain runs, (count, vocabulary) will do


def packed_bits(runs: Runs) -> int:
    """Bits that tokens take; the payload is this rounded up to whole bytes. Runs with a `zipf` exponent count as nothing:
    what they take depends on the tokens."""
    bits = 0
    for run in (Run(*run) for run in runs):
        if run.subset:
            bits += run.count // run.subset * subset_bits(run.vocab_size // 2, run.subset)
        elif not run.zipf:
            g = group_size(run.vocab_size)
            bits += (run.count // g) * _group_bits(run.vocab_size, g)
            bits += _group_bits(run.vocab_size, run.count % g) if run.count % g else 0
    return bits


def pack(tokens: np.ndarray, runs: Runs) -> bytes:
    """Tokens int64 [L] -> bytes, run by run, most significant bit first. Raises SpecError for a token outside its
    vocabulary, and where the runs have more or fewer tokens.

    A plain run's tokens are cut in groups of `group_size`, each group one number in base V (first token most significant)
    in as few bits as its largest value needs; a set of atoms is one number (`entropy.subset_rank`). The tokens of all runs
    with a `zipf` exponent follow after the last whole byte, range-coded together."""
    runs = [Run(*run) for run in runs]
    if sum(run.count for run in runs) != len(tokens):
        raise SpecError(f"{len(tokens)} tokens do not fit runs of {sum(run.count for run in runs)}")
    if (c := native()) is not None and all(_plain(run) for run in runs):
        tokens = np.ascontiguousarray(tokens, np.int64)
        found = c.nbk_pack(tokens, _table(runs))
        if not isinstance(found, bytes):
            raise SpecError(f"token {tokens[found]} is outside its vocabulary")
        return found
    if sum(run.count for run in runs if run.zipf) > MAX_CODED:
        raise SpecError(f"no file has more than {MAX_CODED} range-coded tokens: use rule bins, or a lower rate")
    parts, coded, models, start = [], [], [], 0
    for run in runs:
        some = np.asarray(tokens[start : start + run.count])
        start += run.count
        if run.zipf:
            coded += some.tolist()
            models.append(repeat((run.vocab_size, run.zipf), run.count))
        elif run.subset:
            bits = subset_bits(run.vocab_size // 2, run.subset)
            for one in some.reshape(-1, run.subset):
                data = (subset_rank(one, run.vocab_size // 2) << -bits % 8).to_bytes(-(-bits // 8), "big")
                parts.append(np.unpackbits(np.frombuffer(data, np.uint8), count=bits))
        else:
            outside = (some < 0) | (some >= run.vocab_size)
            if outside.any():
                raise SpecError(f"token {some[outside][0]} is outside its vocabulary")
            parts += _pack_plain(some.astype(np.uint64), run.vocab_size)
    plain = np.packbits(np.concatenate(parts)).tobytes() if parts else b""
    return plain + encode_symbols(coded, chain.from_iterable(models)) if models else plain


def _plain(run: Run) -> bool:
    """Whether a run is of the kind and the size that the extension takes."""
    return not (run.subset or run.zipf) and run.count <= 1 << 40 and 2 <= run.vocab_size <= 1 << 62


def _table(runs: Sequence[Run]) -> np.ndarray:
    """Plain runs as the extension takes them: int64 [R, 2]."""
    return np.array([run[:2] for run in runs], np.int64).reshape(-1, 2)


def _pack_plain(some: np.ndarray, vocab_size: int) -> list[np.ndarray]:
    """Tokens uint64 [N] of one plain run -> arrays of bits."""
    parts, g = [], group_size(vocab_size)
    whole = len(some) - len(some) % g
    for digits, size in ((some[:whole].reshape(-1, g), g), (some[None, whole:], len(some) % g)):
        if digits.size:
            values = np.zeros(len(digits), np.uint64)
            for column in digits.T:
                values = values * np.uint64(vocab_size) + column
            shifts = np.arange(_group_bits(vocab_size, size) - 1, -1, -1, dtype=np.uint64)
            parts.append(((values[:, None] >> shifts) & np.uint64(1)).astype(np.uint8).ravel())
    return parts


def unpack(payload: bytes, runs: Runs, limits: Limits = DEFAULT) -> np.ndarray:
    """The inverse of `pack`: int64 [L]. Raises FormatError for a wrong length, padding that is not zero, a value that no
    tokens pack to, and where reading would take more work than `limits` allow."""
    runs = [Run(*run) for run in runs]
    check_cost(len(payload), runs, limits)
    if (c := native()) is not None and all(_plain(run) for run in runs):
        found = c.nbk_unpack(payload, _table(runs))
        if isinstance(found, str):
            refuse(found, size=len(payload), whole=-(-packed_bits(runs) // 8))
        return found
    need, coded = packed_bits(runs), [run for run in runs if run.zipf]
    whole, tokens = -(-need // 8), sum(run.count for run in coded)
    if len(payload) < whole or (len(payload) > whole and not coded):
        refuse("payload", size=len(payload), whole=whole)
    if least_bytes(tokens) > len(payload) - whole:
        refuse("coded", size=len(payload) - whole, count=tokens)
    if need % 8 and payload[whole - 1] & 255 >> need % 8:
        refuse("padding")
    symbols = decode_runs(payload[whole:], [(run.count, (run.vocab_size, run.zipf)) for run in coded]) if coded else None
    if symbols is not None and tokens == sum(run.count for run in runs):
        return symbols
    out, bit, at, read = np.empty(sum(run.count for run in runs), np.int64), 0, 0, 0
    for run in runs:
        some = out[at : at + run.count]
        at += run.count
        if symbols is not None and run.zipf:
            some[:] = symbols[read : read + run.count]
            read += run.count
        elif run.subset:
            bit = unpack_sets(payload, bit, run, some)
        else:
            bit = unpack_plain(payload, bit, run, some)
    return out


def unpack_plain(payload: bytes, at: int, run: Run, out: np.ndarray, wrong: np.ndarray | None = None) -> int:
    """Fills `out` with the tokens of one plain run whose bits begin at `at`; gives where they end. Numbers that no tokens
    pack to are refused, or, where `wrong` is given, bool as `out`, read as tokens 0 and marked there."""
    g, start = group_size(run.vocab_size), 0
    for groups, size in ((run.count // g, g), (int(run.count % g > 0), run.count % g)):
        if not (groups and size):
            continue
        width = _group_bits(run.vocab_size, size)
        for first in range(0, groups, CHUNK):
            some = min(CHUNK, groups - first)
            read = np.frombuffer(payload, np.uint8)[at // 8 : -(-(at + some * width) // 8)]
            block = np.unpackbits(read)[at % 8 :][: some * width].reshape(some, width)
            at += some * width
            values = np.zeros(some, np.uint64)
            for column in block.T:
                values = values << np.uint64(1) | column
            if (outside := values >= np.uint64(run.vocab_size**size)).any():
                if wrong is None:
                    refuse("vocabulary")
                values[outside], wrong[start : start + some * size] = 0, outside.repeat(size)
            digits = out[start : start + some * size].reshape(some, size)
            start += some * size
            for i in range(size - 1, -1, -1):
                values, digits[:, i] = np.divmod(values, np.uint64(run.vocab_size))
    return at


# ---- the file -----------------------------------------------------------------------------------------------------------
class Frame(NamedTuple):
    """Where the parts of a file lie, in bytes from its beginning; the payload ends 4 bytes before the end."""

    flags: int
    preset: int
    codec_hash: bytes
    height: int
    width: int
    spec: int  # zlib data
    spec_size: int  # 0 without FLAG_SPEC
    steps: int  # 0 without FLAG_DERIVED, as are the tokens
    tokens: int
    payload: int
    scaling: int = UNSCALED


def frame_of(data: bytes) -> Frame:
    """Checks everything of a file but what its specification says. Raises FormatError."""
    if (c := native()) is None or (len(data) > 2 and data[2] & FLAG_SCALED):  # a flag that the extension does not know
        return _frame_of(data)
    found = c.nbk_parse(data)
    if isinstance(found, str):
        version, flags = divmod(data[2] if len(data) > 2 else 0, 16)
        refuse(found, size=len(data), limit=MAX_FILE, version=version, flags=flags)
    return Frame(*found)


def _frame_of(data: bytes) -> Frame:
    if len(data) < OVERHEAD:
        refuse("few", size=len(data))
    if len(data) > MAX_FILE:
        refuse("many", limit=MAX_FILE)
    magic, version, preset, codec_hash, height, width = HEADER.unpack_from(data)
    if magic != MAGIC:
        refuse("magic")
    if struct.unpack_from("<I", data, len(data) - 4)[0] != crc32c(data[:-4]):
        refuse("checksum")
    version, flags = divmod(version, 16)
    if version != FORMAT_VERSION or flags not in TOGETHER:
        refuse("version", version=version, flags=flags)
    if not height or not width:
        refuse("size")
    spec, spec_size, steps, tokens, scaling, left = HEADER.size, 0, 0, 0, UNSCALED, len(data) - OVERHEAD
    payload = spec
    if flags & FLAG_SPEC:
        spec += 4
        if left < 4 or (spec_size := struct.unpack_from("<I", data, HEADER.size)[0]) > left - 4:
            refuse("spec")
        payload = spec + spec_size
    if flags & FLAG_DERIVED:
        steps, tokens, scaling, payload = read_derived(data, HEADER.size, left, bool(flags & FLAG_SCALED))
    return Frame(flags, preset, codec_hash, height, width, spec, spec_size, steps, tokens, payload, scaling)


def _unpacked(packed: bytes) -> bytes:
    """The JSON of an embedded specification. Raises FormatError for all but a whole zlib stream of at most MAX_SPEC."""
    try:
        unpacker = zlib.decompressobj()
        spec_json = unpacker.decompress(packed, MAX_SPEC)
    except zlib.error as error:
        raise FormatError("the embedded specification cannot be unpacked: the file is damaged") from error
    if not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"the embedded specification is larger than {MAX_SPEC} bytes, or damaged")
    return spec_json


@dataclass(frozen=True)
class Container:
    """A parsed file: everything but the meaning of the payload, which needs the specification."""

    codec_hash: bytes
    height: int
    width: int
    payload: bytes
    preset: int = 0
    spec_json: bytes | None = None
    derived: Derived | None = None  # from which a curve makes the specification
    robust: bool = False  # the header is sent twice, see format/robust.py

    def to_bytes(self) -> bytes:
        """The file. Raises FormatError where a field does not fit."""
        if not (1 <= self.height <= 0xFFFF and 1 <= self.width <= 0xFFFF):
            raise FormatError(f"an image of {self.height} x {self.width} does not fit the format (1 ... 65535 a side)")
        flags = (self.spec_json is not None) * FLAG_SPEC + (self.derived is not None) * FLAG_DERIVED
        if flags == FLAG_SPEC + FLAG_DERIVED:
            raise FormatError("a specification is embedded or derived, not both")
        flags += (self.derived is not None and scaling_of(self.derived) != UNSCALED) * FLAG_SCALED
        version = FORMAT_VERSION << 4 | flags
        out = HEADER.pack(MAGIC, version, self.preset, self.codec_hash, self.height, self.width)
        if self.spec_json is not None:
            packed = zlib.compress(self.spec_json, 9)
            out += struct.pack("<I", len(packed)) + packed
        if self.derived is not None:
            out += derived_bytes(self.derived)
        whole = out + self.payload
        whole += struct.pack("<I", crc32c(whole))
        return wrapped(whole, len(out)) if self.robust else whole

    @classmethod
    def from_bytes(cls, data: bytes) -> "Container":
        """Parses and checks a file. Raises FormatError for anything that `to_bytes` did not write."""
        data, robust = unwrapped(data, MAGIC)
        frame, spec_json = frame_of(data), None
        if frame.flags & FLAG_SPEC:
            spec_json = _unpacked(data[frame.spec : frame.spec + frame.spec_size])
            if hashlib.sha256(spec_json).digest()[:8] != frame.codec_hash:
                raise FormatError("the embedded specification does not match the codec hash: the file is damaged")
        derived = derived_of(frame.steps, frame.tokens, frame.scaling) if frame.flags & FLAG_DERIVED else None
        payload = data[frame.payload : -4]
        return cls(frame.codec_hash, frame.height, frame.width, payload, frame.preset, spec_json, derived, robust)

    @classmethod
    def read(cls, path: str | Path) -> "Container":
        """Reads a file. Raises FormatError as `from_bytes`, also when it cannot be read, is no regular file, or is larger
        than 256 MiB."""
        return cls.from_bytes(read_file(path))


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file (a pipe may never end) of at most 256 MiB. Raises FormatError for any other."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError("cannot be read: it is no regular file")
        # what has become a pipe since then does not wait either
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as f:
            data = f.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FormatError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_FILE:
        refuse("many", limit=MAX_FILE)
    return data
