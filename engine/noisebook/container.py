"""The `.nbk` file: 20 bytes of header and checksum around packed tokens. docs/format.md is the specification.

    offset  bytes
    0       2   magic B7 4E
    2       1   format version (high 4 bits), flags (low 4 bits): 1 = the specification is embedded
    3       1   preset number, 0 = none
    4       8   codec hash: first 8 bytes of the SHA-256 of the specification's canonical JSON
    12      4   height and width of the image, uint16 little-endian each, 1 ... 65535
    16      -   if flagged: uint32 little-endian length, then the specification as zlib-compressed canonical JSON
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

from noisebook.errors import FormatError

MAGIC = b"\xb7N"
FORMAT_VERSION = 1
FLAG_SPEC = 1
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


def packed_bits(runs: Sequence[tuple[int, int]]) -> int:
    """Bits that tokens take, for runs of (count, vocabulary); the payload is this rounded up to whole bytes."""
    bits = 0
    for count, vocabulary in runs:
        g = group_size(vocabulary)
        bits += (count // g) * _group_bits(vocabulary, g)
        bits += _group_bits(vocabulary, count % g) if count % g else 0
    return bits


def pack(tokens: np.ndarray, runs: Sequence[tuple[int, int]]) -> bytes:
    """Tokens int64 [L] -> bytes. Each run's tokens are cut in groups of `group_size`, each group one number in base V
    (first token most significant) in as few bits as its largest value needs, most significant bit first."""
    parts, start = [], 0
    for count, vocabulary in runs:
        run = np.asarray(tokens[start : start + count], np.uint64)
        start += count
        g = group_size(vocabulary)
        whole = count - count % g
        for digits, size in ((run[:whole].reshape(-1, g), g), (run[None, whole:], count % g)):
            if digits.size:
                values = np.zeros(len(digits), np.uint64)
                for column in digits.T:
                    values = values * np.uint64(vocabulary) + column
                shifts = np.arange(_group_bits(vocabulary, size) - 1, -1, -1, dtype=np.uint64)
                parts.append(((values[:, None] >> shifts) & np.uint64(1)).astype(np.uint8).ravel())
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def unpack(payload: bytes, runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The inverse of `pack`: int64 [L]. Raises FormatError for a wrong length, padding that is not zero, or a value that
    no tokens pack to."""
    need = packed_bits(runs)
    if len(payload) != -(-need // 8):
        raise FormatError(f"the payload has {len(payload)} bytes where the codec has {-(-need // 8)}: damaged, or of "
                          "another codec")  # fmt: skip
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    if bits[need:].any():
        raise FormatError("padding bits are not zero: the file is damaged")
    out, at = [], 0
    for count, vocabulary in runs:
        g = group_size(vocabulary)
        for groups, size in ((count // g, g), (int(count % g > 0), count % g)):
            if groups and size:
                width = _group_bits(vocabulary, size)
                block = bits[at : at + groups * width].reshape(groups, width)
                at += groups * width
                values = np.zeros(groups, np.uint64)
                for column in block.T:
                    values = values << np.uint64(1) | column
                if (values >= np.uint64(vocabulary**size)).any():
                    raise FormatError("a token is outside its vocabulary: the file is damaged, or of another codec")
                digits = np.empty((groups, size), np.uint64)
                for i in range(size - 1, -1, -1):
                    values, digits[:, i] = np.divmod(values, np.uint64(vocabulary))
                out.append(digits.ravel())
    return (np.concatenate(out) if out else np.empty(0, np.uint64)).astype(np.int64)


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

    def to_bytes(self) -> bytes:
        """The file. Raises FormatError where a field does not fit."""
        if not (1 <= self.height <= 0xFFFF and 1 <= self.width <= 0xFFFF):
            raise FormatError(f"an image of {self.height} x {self.width} does not fit the format (1 ... 65535 a side)")
        flags = FLAG_SPEC if self.spec_json is not None else 0
        version = FORMAT_VERSION << 4 | flags
        out = HEADER.pack(MAGIC, version, self.preset, self.codec_hash, self.height, self.width)
        if self.spec_json is not None:
            packed = zlib.compress(self.spec_json, 9)
            out += struct.pack("<I", len(packed)) + packed
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
        if version >> 4 != FORMAT_VERSION or version & 0xF & ~FLAG_SPEC:
            raise FormatError(f"format version {version >> 4} with flags {version & 0xF} is newer than this noisebook")
        if not height or not width:
            raise FormatError("the image size is zero: the file is damaged")
        body, spec_json = data[HEADER.size : -4], None
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
        return cls(codec_hash, height, width, body, preset, spec_json)

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
