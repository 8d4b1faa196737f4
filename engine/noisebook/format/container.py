"""The `.nbk` file: 20 or 24 bytes of header and checksum around packed tokens. docs/format.md is the specification.

    offset  bytes
    0       2   magic B7 4E
    2       1   format version (high 4 bits), flags (low 4 bits): 1 = the specification is embedded, 2 = it is derived
    3       1   preset number, 0 = none; if derived the curve's number
    4       8   codec hash: first 8 bytes of the SHA-256 of the specification's canonical JSON
    12      4   height and width of the image, uint16 little-endian each, 1 ... 65535
    16      -   if embedded: uint32 little-endian length, then the specification as zlib-compressed canonical JSON
    16      4   if derived: uint32 little-endian, steps in the lowest 8 bits, tokens in the others
    -       -   packed tokens
    end-4   4   CRC-32C of everything before, little-endian

No torch here: numpy arrays and bytes. This is the definition; where the C++ extension was built, csrc/nbk.cpp does the same
for checksum, frame and plain runs, and fuzzing (docs/reliability.md) compares the two.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisebook.errors import FormatError, SpecError
from noisebook.format.crc import crc32c
from noisebook.format.entropy import decode_symbols, encode_symbols, subset_bits, subset_rank, subset_tokens
from noisebook.format.refusals import refuse
from noisebook.format.runs import Run
from noisebook.runtime.native import native

MAGIC = b"\xb7N"
FORMAT_VERSION = 1
FLAG_SPEC, FLAG_DERIVED = 1, 2
HEADER = struct.Struct("<2sBB8sHH")
OVERHEAD = HEADER.size + 4  # bytes of header and checksum: 20
MAX_FILE = 1 << 28  # bytes; nothing larger is read
MAX_SPEC = 1 << 22  # bytes of an embedded specification, unpacked
MAX_CODED = 1 << 24  # range-coded tokens: no payload is too short for any number of them


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
    parts, coded, start = [], [], 0
    for run in runs:
        some = np.asarray(tokens[start : start + run.count])
        start += run.count
        if run.zipf:
            coded += [(k, (run.vocab_size, run.zipf)) for k in some.tolist()]
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
    if not coded:
        return plain
    return plain + encode_symbols([k for k, _ in coded], [model for _, model in coded])


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


def unpack(payload: bytes, runs: Runs) -> np.ndarray:
    """The inverse of `pack`: int64 [L]. Raises FormatError for a wrong length, padding that is not zero, or a value that
    no tokens pack to."""
    runs = [Run(*run) for run in runs]
    if (c := native()) is not None and all(_plain(run) for run in runs):
        found = c.nbk_unpack(payload, _table(runs))
        if isinstance(found, str):
            refuse(found, size=len(payload), whole=-(-packed_bits(runs) // 8))
        return found
    _check_sizes(len(payload), runs)
    need, coded = packed_bits(runs), [run for run in runs if run.zipf]
    whole = -(-need // 8)
    if len(payload) < whole or (len(payload) > whole and not coded):
        refuse("payload", size=len(payload), whole=whole)
    bits = np.unpackbits(np.frombuffer(payload[:whole], np.uint8))
    if bits[need:].any():
        refuse("padding")
    models = [(run.vocab_size, run.zipf) for run in coded for _ in range(run.count)]
    symbols = decode_symbols(payload[whole:], models) if coded else np.empty(0, np.int64)
    out, at, read = [], 0, 0
    for run in runs:
        if run.zipf:
            out.append(symbols[read : read + run.count])
            read += run.count
        elif run.subset:
            size = subset_bits(run.vocab_size // 2, run.subset)
            for _ in range(run.count // run.subset):
                number = int.from_bytes(np.packbits(bits[at : at + size]).tobytes(), "big") >> -size % 8
                out.append(subset_tokens(number, run.vocab_size // 2, run.subset))
                at += size
        else:
            found, at = _unpack_plain(bits, at, run)
            out += found
    return np.concatenate(out).astype(np.int64) if out else np.empty(0, np.int64)


def _check_sizes(size: int, runs: Sequence[Run]) -> None:
    """Refuses runs that would take very long only to find that they do not fit a payload of `size` bytes."""
    least = 0  # of C(K, M) > (K / M)^M sets
    for run in runs:
        if run.subset:
            least += run.count * max(1, (run.vocab_size // 2 // run.subset).bit_length())
    if least > 8 * size:
        refuse("sets", size=size, whole=-(-least // 8))
    if sum(run.count for run in runs if run.zipf) > MAX_CODED:
        refuse("coded", limit=MAX_CODED)


def _unpack_plain(bits: np.ndarray, at: int, run: Run) -> tuple[list[np.ndarray], int]:
    """(the tokens of one plain run, whose bits begin at `at`, where they end)."""
    out, g = [], group_size(run.vocab_size)
    for groups, size in ((run.count // g, g), (int(run.count % g > 0), run.count % g)):
        if groups and size:
            width = _group_bits(run.vocab_size, size)
            block = bits[at : at + groups * width].reshape(groups, width)
            at += groups * width
            values = np.zeros(groups, np.uint64)
            for column in block.T:
                values = values << np.uint64(1) | column
            if (values >= np.uint64(run.vocab_size**size)).any():
                refuse("vocabulary")
            digits = np.empty((groups, size), np.uint64)
            for i in range(size - 1, -1, -1):
                values, digits[:, i] = np.divmod(values, np.uint64(run.vocab_size))
            out.append(digits.ravel())
    return out, at


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


def frame_of(data: bytes) -> Frame:
    """Checks everything of a file but what its specification says. Raises FormatError."""
    if (c := native()) is None:
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
    if version != FORMAT_VERSION or flags & ~(FLAG_SPEC | FLAG_DERIVED) or flags == FLAG_SPEC | FLAG_DERIVED:
        refuse("version", version=version, flags=flags)
    if not height or not width:
        refuse("size")
    spec, spec_size, steps, tokens, left = HEADER.size, 0, 0, 0, len(data) - OVERHEAD
    payload = spec
    if flags & FLAG_SPEC:
        spec += 4
        if left < 4 or (spec_size := struct.unpack_from("<I", data, HEADER.size)[0]) > left - 4:
            refuse("spec")
        payload = spec + spec_size
    if flags & FLAG_DERIVED:
        if left < 4:
            refuse("derived")
        (value,) = struct.unpack_from("<I", data, HEADER.size)
        steps, tokens, payload = value & 0xFF, value >> 8, HEADER.size + 4
        if not steps or not tokens:
            refuse("zero")
    return Frame(flags, preset, codec_hash, height, width, spec, spec_size, steps, tokens, payload)


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
    derived: tuple[int, int] | None = None  # (steps, tokens) from which a curve makes the specification

    def to_bytes(self) -> bytes:
        """The file. Raises FormatError where a field does not fit."""
        if not (1 <= self.height <= 0xFFFF and 1 <= self.width <= 0xFFFF):
            raise FormatError(f"an image of {self.height} x {self.width} does not fit the format (1 ... 65535 a side)")
        flags = (self.spec_json is not None) * FLAG_SPEC + (self.derived is not None) * FLAG_DERIVED
        if flags == FLAG_SPEC + FLAG_DERIVED:
            raise FormatError("a specification is embedded or derived, not both")
        version = FORMAT_VERSION << 4 | flags
        out = HEADER.pack(MAGIC, version, self.preset, self.codec_hash, self.height, self.width)
        if self.spec_json is not None:
            packed = zlib.compress(self.spec_json, 9)
            out += struct.pack("<I", len(packed)) + packed
        if self.derived is not None:
            steps, tokens = self.derived
            if not (1 <= steps <= 0xFF and 1 <= tokens <= 0xFFFFFF):
                raise FormatError(f"{tokens} tokens in {steps} steps do not fit the format (at most 2^24 - 1 in 255)")
            out += struct.pack("<I", tokens << 8 | steps)
        out += self.payload
        return out + struct.pack("<I", crc32c(out))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Container":
        """Parses and checks a file. Raises FormatError for anything that `to_bytes` did not write."""
        frame, spec_json = frame_of(data), None
        if frame.flags & FLAG_SPEC:
            spec_json = _unpacked(data[frame.spec : frame.spec + frame.spec_size])
            if hashlib.sha256(spec_json).digest()[:8] != frame.codec_hash:
                raise FormatError("the embedded specification does not match the codec hash: the file is damaged")
        derived = (frame.steps, frame.tokens) if frame.flags & FLAG_DERIVED else None
        payload = data[frame.payload : -4]
        return cls(frame.codec_hash, frame.height, frame.width, payload, frame.preset, spec_json, derived)

    @classmethod
    def read(cls, path: str | Path) -> "Container":
        """Reads a file. Raises FormatError as `from_bytes`, also when it cannot be read or is larger than 256 MiB."""
        try:
            with open(path, "rb") as f:
                data = f.read(MAX_FILE + 1)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_FILE:
            refuse("many", limit=MAX_FILE)
        return cls.from_bytes(data)
