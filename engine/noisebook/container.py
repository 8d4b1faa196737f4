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

No torch here: numpy arrays and bytes.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from noisebook.coding import decode_symbols, encode_symbols, subset_bits, subset_rank, subset_tokens
from noisebook.errors import FormatError
from noisebook.runs import Run

MAGIC = b"\xb7N"
FORMAT_VERSION = 1
FLAG_SPEC, FLAG_DERIVED = 1, 2
HEADER = struct.Struct("<2sBB8sHH")
OVERHEAD = HEADER.size + 4  # bytes of header and checksum: 20
MAX_FILE = 1 << 28  # bytes; nothing larger is read
MAX_SPEC = 1 << 22  # bytes of an embedded specification, unpacked


@cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as in RFC 3720: reflected polynomial 0x82F63B78, initial and final complement."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# ---- packing ------------------------------------------------------------------------------------------------------------
def group_size(vocabulary: int) -> int:
    """How many base-V digits share one group: 1 where V is a power of two, else as many as fit 63 bits."""
    if vocabulary & (vocabulary - 1) == 0:
        return 1
    size, product = 1, vocabulary
    while product * vocabulary < 1 << 63:
        size, product = size + 1, product * vocabulary
    return size


def _group_bits(vocabulary: int, digits: int) -> int:
    return (vocabulary**digits - 1).bit_length()


Runs = Sequence[Run] | Sequence[tuple[int, int]]  # of plain runs, (count, vocabulary) will do


def packed_bits(runs: Runs) -> int:
    """Bits that tokens take; the payload is this rounded up to whole bytes. Runs with a `zipf` exponent count as nothing:
    what they take depends on the tokens."""
    bits = 0
    for run in (Run(*run) for run in runs):
        if run.subset:
            bits += run.count // run.subset * subset_bits(run.vocabulary // 2, run.subset)
        elif not run.zipf:
            g = group_size(run.vocabulary)
            bits += (run.count // g) * _group_bits(run.vocabulary, g)
            bits += _group_bits(run.vocabulary, run.count % g) if run.count % g else 0
    return bits


def pack(tokens: np.ndarray, runs: Runs) -> bytes:
    """Tokens int64 [L] -> bytes, run by run, most significant bit first.

    A plain run's tokens are cut in groups of `group_size`, each group one number in base V (first token most significant)
    in as few bits as its largest value needs; a set of atoms is one number (`coding.subset_rank`). The tokens of all runs
    with a `zipf` exponent follow after the last whole byte, range-coded together."""
    parts, coded, start = [], [], 0
    for run in (Run(*run) for run in runs):
        some = np.asarray(tokens[start : start + run.count])
        start += run.count
        if run.zipf:
            coded += [(k, (run.vocabulary, run.zipf)) for k in some.tolist()]
        elif run.subset:
            bits = subset_bits(run.vocabulary // 2, run.subset)
            for one in some.reshape(-1, run.subset):
                data = (subset_rank(one, run.vocabulary // 2) << -bits % 8).to_bytes(-(-bits // 8), "big")
                parts.append(np.unpackbits(np.frombuffer(data, np.uint8), count=bits))
        else:
            parts += _pack_plain(some.astype(np.uint64), run.vocabulary)
    plain = np.packbits(np.concatenate(parts)).tobytes() if parts else b""
    return plain + encode_symbols(*zip(*coded, strict=True)) if coded else plain  # type: ignore[arg-type]


def _pack_plain(some: np.ndarray, vocabulary: int) -> list[np.ndarray]:
    """Tokens uint64 [N] of one plain run -> arrays of bits."""
    parts, g = [], group_size(vocabulary)
    whole = len(some) - len(some) % g
    for digits, size in ((some[:whole].reshape(-1, g), g), (some[None, whole:], len(some) % g)):
        if digits.size:
            values = np.zeros(len(digits), np.uint64)
            for column in digits.T:
                values = values * np.uint64(vocabulary) + column
            shifts = np.arange(_group_bits(vocabulary, size) - 1, -1, -1, dtype=np.uint64)
            parts.append(((values[:, None] >> shifts) & np.uint64(1)).astype(np.uint8).ravel())
    return parts


def unpack(payload: bytes, runs: Runs) -> np.ndarray:
    """The inverse of `pack`: int64 [L]. Raises FormatError for a wrong length, padding that is not zero, or a value that
    no tokens pack to."""
    runs = [Run(*run) for run in runs]
    need, coded = packed_bits(runs), [run for run in runs if run.zipf]
    whole = -(-need // 8)
    if len(payload) < whole or (len(payload) > whole and not coded):
        raise FormatError(f"the payload has {len(payload)} bytes where the codec has {whole}: damaged, or of another codec")
    bits = np.unpackbits(np.frombuffer(payload[:whole], np.uint8))
    if bits[need:].any():
        raise FormatError("padding bits are not zero: the file is damaged")
    models = [(run.vocabulary, run.zipf) for run in coded for _ in range(run.count)]
    symbols = decode_symbols(payload[whole:], models) if coded else np.empty(0, np.int64)
    out, at, read = [], 0, 0
    for run in runs:
        if run.zipf:
            out.append(symbols[read : read + run.count])
            read += run.count
        elif run.subset:
            size = subset_bits(run.vocabulary // 2, run.subset)
            for _ in range(run.count // run.subset):
                number = int.from_bytes(np.packbits(bits[at : at + size]).tobytes(), "big") >> -size % 8
                out.append(subset_tokens(number, run.vocabulary // 2, run.subset))
                at += size
        else:
            found, at = _unpack_plain(bits, at, run)
            out += found
    return np.concatenate(out).astype(np.int64) if out else np.empty(0, np.int64)


def _unpack_plain(bits: np.ndarray, at: int, run: Run) -> tuple[list[np.ndarray], int]:
    """(the tokens of one plain run, whose bits begin at `at`, where they end)."""
    out, g = [], group_size(run.vocabulary)
    for groups, size in ((run.count // g, g), (int(run.count % g > 0), run.count % g)):
        if groups and size:
            width = _group_bits(run.vocabulary, size)
            block = bits[at : at + groups * width].reshape(groups, width)
            at += groups * width
            values = np.zeros(groups, np.uint64)
            for column in block.T:
                values = values << np.uint64(1) | column
            if (values >= np.uint64(run.vocabulary**size)).any():
                raise FormatError("a token is outside its vocabulary: the file is damaged, or of another codec")
            digits = np.empty((groups, size), np.uint64)
            for i in range(size - 1, -1, -1):
                values, digits[:, i] = np.divmod(values, np.uint64(run.vocabulary))
            out.append(digits.ravel())
    return out, at


# ---- the file -----------------------------------------------------------------------------------------------------------
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
        if len(data) < OVERHEAD:
            raise FormatError(f"{len(data)} bytes are too few for a .nbk file: it is truncated, or something else")
        magic, version, preset, codec_hash, height, width = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise FormatError("not a .nbk file (wrong magic bytes)")
        if struct.unpack_from("<I", data, len(data) - 4)[0] != crc32c(data[:-4]):
            raise FormatError("the checksum does not match: the file is truncated or damaged")
        if version >> 4 != FORMAT_VERSION or version & 0xF & ~(FLAG_SPEC | FLAG_DERIVED) or version & 0xF == 3:
            raise FormatError(f"format version {version >> 4} with flags {version & 0xF} is newer than this noisebook")
        if not height or not width:
            raise FormatError("the image size is zero: the file is damaged")
        body, spec_json, derived = data[HEADER.size : -4], None, None
        if version & FLAG_SPEC:
            if len(body) < 4 or (size := struct.unpack_from("<I", body)[0]) > len(body) - 4:
                raise FormatError("the embedded specification is cut off: the file is damaged")
            try:
                unpacker = zlib.decompressobj()
                spec_json = unpacker.decompress(body[4 : 4 + size], MAX_SPEC)
            except zlib.error as error:
                raise FormatError("the embedded specification cannot be unpacked: the file is damaged") from error
            if not unpacker.eof or unpacker.unused_data:
                raise FormatError(f"the embedded specification is larger than {MAX_SPEC} bytes, or damaged")
            if hashlib.sha256(spec_json).digest()[:8] != codec_hash:
                raise FormatError("the embedded specification does not match the codec hash: the file is damaged")
            body = body[4 + size :]
        if version & FLAG_DERIVED:
            if len(body) < 4:
                raise FormatError("the steps and tokens are cut off: the file is damaged")
            (value,) = struct.unpack_from("<I", body)
            derived, body = (value & 0xFF, value >> 8), body[4:]
            if not all(derived):
                raise FormatError("the file says that it has no steps or no tokens: it is damaged")
        return cls(codec_hash, height, width, body, preset, spec_json, derived)

    @classmethod
    def read(cls, path: str | Path) -> "Container":
        """Reads a file. Raises FormatError as `from_bytes`, also when it cannot be read or is larger than 256 MiB."""
        try:
            with open(path, "rb") as f:
                data = f.read(MAX_FILE + 1)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_FILE:
            raise FormatError(f"more than {MAX_FILE} bytes: not a .nbk file")
        return cls.from_bytes(data)
