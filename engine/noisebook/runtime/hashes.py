"""Hashes of large files: several threads make them, and the user's cache keeps them from one run to the next.

The hash of a file is the SHA-256 of the SHA-256 digests, 32 bytes each, of its pieces of 16 MiB in order; the last piece may
be shorter. So it is a function of the file's bytes, however many threads there are:

    sha256(b"".join(sha256(data[i : i + 2**24]).digest() for i in range(0, len(data), 2**24))).hexdigest()
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from noisebook.runtime.cache import add_notes, read_notes

PIECE = 1 << 24  # bytes
BLOCK = 1 << 20  # bytes that a thread reads at once: they are hashed while they are in its cache
THREADS = 32
NOTED = 1 << 24  # bytes of a file whose hash is worth noting down
SETTLED = 2.0  # seconds: a file that was changed more lately may be changed again without a new time of change
NOTES = "file-hashes.json"


class FileChangedError(OSError):
    """A file is not the one any more that it was."""


@dataclass(frozen=True)
class Stamp:
    """Which file it is, and in which state: as long as these are equal, so are its bytes."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int  # unlike the time of change of its content, nobody sets it back

    @classmethod
    def of(cls, path_or_handle: Path | int) -> "Stamp":
        """Raises OSError where there is no such file."""
        about = os.stat(path_or_handle)
        return cls(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)

    @property
    def key(self) -> str:
        """In the cache."""
        return ":".join(map(str, astuple(self)))

    @property
    def settled(self) -> bool:
        """Whether a later change would show."""
        return max(self.mtime_ns, self.ctime_ns) / 1e9 < time.time() - SETTLED


def hashes_of(files: Sequence[Path], stamps: Sequence[Stamp]) -> list[str]:
    """The hash of each file, 64 hex digits, see above: from the cache, or of all its bytes.

    `stamps` are what the files were; raises FileChangedError where one of them is not that any more, OSError where one
    cannot be read."""
    known = read_notes(NOTES) if any(stamp.size >= NOTED for stamp in stamps) else {}
    found = [known.get(stamp.key) for stamp in stamps]
    todo = [(file, stamp) for file, stamp, digest in zip(files, stamps, found, strict=True) if digest is None]
    made = iter(_hash_all(todo))
    whole = [digest or next(made) for digest in found]
    for file, stamp in zip(files, stamps, strict=True):
        check_unchanged(file, stamp)
    new = {s.key: digest for s, digest in zip(stamps, whole, strict=True) if s.size >= NOTED and s.settled}
    add_notes(NOTES, {key: digest for key, digest in new.items() if key not in known})
    return whole


def check_unchanged(file: Path, stamp: Stamp) -> None:
    """Raises FileChangedError where a file is not the one of `stamp`, OSError where none is there."""
    if Stamp.of(file) != stamp:
        raise FileChangedError(f"{file} has changed since it was read")


def _hash_all(files: Sequence[tuple[Path, Stamp]]) -> list[str]:
    pieces = [(file, stamp, start) for file, stamp in files for start in range(0, stamp.size, PIECE)]
    threads = min(THREADS, len(pieces), os.cpu_count() or 1)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:  # hashlib and reading let other threads run
            digests = list(pool.map(_hash_piece, pieces))
    else:
        digests = list(map(_hash_piece, pieces))
    out = []
    for _, stamp in files:
        count = -(-stamp.size // PIECE)
        out.append(hashlib.sha256(b"".join(digests[:count])).hexdigest())
        del digests[:count]
    return out


def _hash_piece(piece: tuple[Path, Stamp, int]) -> bytes:
    file, stamp, start = piece
    digest, left, block = hashlib.sha256(), min(PIECE, stamp.size - start), memoryview(bytearray(BLOCK))
    with open(file, "rb", buffering=0) as f:
        if Stamp.of(f.fileno()) != stamp:
            raise FileChangedError(f"{file} has changed since it was read")
        f.seek(start)
        while left:
            count = f.readinto(block[: min(BLOCK, left)])
            if not count:
                raise FileChangedError(f"{file} has become shorter")
            digest.update(block[:count])
            left -= count
    return digest.digest()
