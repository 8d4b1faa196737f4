"""The files in a tar, read as the standard library's `tarfile` reads them: links lead to the files of the same tar, sparse
files are whole, long names too."""

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from noisebook.datasets.sources.base import File, open_file, utf8
from noisebook.errors import DatasetError, first_line, printable

LINKS = 40  # that lead to each other, at most, as in a file system
PIECE = 1 << 20  # bytes after the end of a tar that are looked at once
MOST = 1 << 62  # bytes of a member, at most
HEAD = 64  # bytes of a file of which the text is kept, at most
#: what unpacks a compressed tar, by the endings of its name
COMPRESSED = {
    (".tar.gz", ".tgz", ".taz", ".tar.z"): "gzip -d -k",
    (".tar.bz2", ".tbz2", ".tbz", ".tb2"): "bzip2 -d -k",
    (".tar.xz", ".txz", ".tar.lzma", ".tlz"): "xz -d -k",
    (".tar.zst", ".tzst", ".tar.zstd"): "zstd -d",
    (".tar.lz4",): "lz4 -d",
    (".tar.br",): "brotli -d",
}
ENDINGS = tuple(ending for endings in COMPRESSED for ending in endings)
STARTS = ((b"\x1f\x8b", "gzip -d"), (b"BZh", "bzip2 -d"), (b"\xfd7zXZ\0", "xz -d"), (b"\x28\xb5\x2f\xfd", "zstd -d"))


class Member(NamedTuple):
    """A file of a tar, or a link to one."""

    name: str
    part: int  # which of the tars that were put one after the other
    start: int = 0  # of its bytes; of its header where it is sparse
    size: int = 0  # of its bytes, holes included
    sparse: bool = False
    problem: str = ""  # why it cannot be read: the code of the failure, and words
    kind: str = "file"  # or folder, pipe, device; of a link that of its target
    text: bytes | None = None  # of a short file with the ending whose texts are kept


class _Header(NamedTuple):
    name: str  # as `tarfile` gives it
    part: int
    kind: str
    start: int
    size: int
    link: str = ""
    cut: bool = False  # the tar ends before it does
    text: bytes | None = None


@dataclass
class Tar:
    """What a tar holds. `others`: kinds of what is no file -> how many; `problem`: why there may be more."""

    members: list[Member]
    others: dict[str, int]
    problem: str = ""


def read_tar(file: File, texts: str) -> Tar:
    """The members of a tar, in their order, with the text of short files with the ending `texts`. Raises DatasetError for a
    tar that is compressed."""
    headers: list[_Header] = []
    problem, others = "", dict[str, int]()
    if file.problem:
        return Tar([], others, file.problem)
    try:
        with open_file(file) as f:
            _refuse_compressed(file, f.read(8))
            f.seek(0)
            for header in _headers(f, file.size, others):
                if header.kind == "file" and header.name.lower().endswith(texts) and header.size <= HEAD:
                    f.seek(header.start)
                    header = header._replace(text=f.read(header.size))
                headers.append(header)
    except DatasetError:
        raise
    except Exception as error:  # of damaged headers `tarfile` raises what it likes
        problem = f"damaged: the tar, from here on: {first_line(error)}"
    return Tar(_resolved(headers), others, problem)


def refuse_compressed(files: list[File]) -> None:
    """Raises DatasetError where one of these is named as a compressed tar is."""
    for file in files:
        for endings, command in COMPRESSED.items():
            if file.name.lower().endswith(endings):
                raise DatasetError(_unpack(file, command))


def _refuse_compressed(file: File, head: bytes) -> None:
    for start, command in STARTS:
        if head.startswith(start):
            name = posixpath.basename(file.name)
            raise DatasetError(_unpack(file, f"{command} < {printable(name, 100)} > plain-{printable(name, 100)}", ""))


def _unpack(file: File, command: str, name: str | None = None) -> str:
    name = printable(posixpath.basename(file.name), 200) if name is None else name
    why = "a compressed tar: its pictures cannot be read one by one"
    return f"{printable(file.path)}: {why}: unpack it first: {command} {name}".rstrip()


def _headers(f: Any, size: int, others: dict[str, int]) -> Iterator[_Header]:
    """What each header of a tar says, and of tars that follow it. Raises what `tarfile` raises, and ReadError where the tar
    ends too early."""
    part, begin = 0, 0
    while begin >= 0:
        f.seek(begin)
        at, tar = begin, _opened(f)
        while (member := tar.next()) is not None:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - it would hold them all
            header = _header(member, part, size)
            yield header
            if header.cut:
                raise tarfile.ReadError("it ends too early")
            if tar.offset <= at:
                raise tarfile.ReadError("a header leads back")
            at = tar.offset
        if part and at == begin:  # no header is there
            others["data after the end of a tar"] = others.get("data after the end of a tar", 0) + 1
            return
        f.seek(at)  # `tarfile` takes a damaged header for the end
        if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it has no end mark: cut short, or a damaged header")
        part, begin = part + 1, _next_block(f, at + tarfile.BLOCKSIZE)


def _opened(f: Any) -> tarfile.TarFile:
    """The tar that begins here."""
    return tarfile.open(fileobj=f, mode="r:", encoding="utf-8", errors="surrogateescape")


def _next_block(f: Any, at: int) -> int:
    """Where the first block after `at` is that is not empty; -1: there is none."""
    f.seek(at)
    while piece := f.read(PIECE):
        if rest := piece.lstrip(b"\0"):
            before = len(piece) - len(rest)
            return at + before - before % tarfile.BLOCKSIZE
        at += len(piece)
    return -1


def _header(member: tarfile.TarInfo, part: int, size: int) -> _Header:
    name = member.name
    if member.issym() or member.islnk():
        kind = "symbolic link" if member.issym() else "hard link"
        return _Header(name, part, kind, 0, 0, member.linkname)
    if member.isdir() or member.isfifo() or member.isdev():
        return _Header(name, part, "folder" if member.isdir() else "pipe" if member.isfifo() else "device", 0, 0)
    if not 0 <= member.size < MOST:
        raise tarfile.ReadError(f"a file of {member.size:,} bytes")
    if member.issparse():
        stored = sum(length for _, length in _extents(member))
        return _Header(name, part, "sparse", member.offset, member.size, cut=member.offset_data + stored > size)
    return _Header(name, part, "file", member.offset_data, member.size, cut=member.offset_data + member.size > size)


def _resolved(headers: list[_Header]) -> list[Member]:
    places: dict[str, list[int]] = {}
    if any(header.kind.endswith("link") for header in headers):
        for i, header in enumerate(headers):
            places.setdefault(posixpath.normpath(header.name), []).append(i)
    return [_member(header, _target(headers, places, i)) for i, header in enumerate(headers)]


def _target(headers: list[_Header], places: dict[str, list[int]], i: int) -> "_Header | str":
    """Where a link leads in the end, or why nowhere; anything else is its own target."""
    for _ in range(LINKS):
        header = headers[i]
        if not header.kind.endswith("link"):
            return header
        name = header.link
        if header.kind == "symbolic link":
            name = "/".join(filter(None, (posixpath.dirname(header.name), name)))
        found = places.get(posixpath.normpath(name), [])
        if header.kind == "hard link":  # to what stands before it
            found = [j for j in found if j < i]
        if not found:
            return f"missing: a {header.kind} to {printable(utf8(header.link), 200)}, which is not in this tar"
        i = found[-1]
    return "unreadable: a link that leads to itself, or through too many others"


def _member(header: _Header, target: "_Header | str") -> Member:
    name = "/".join(part for part in utf8(header.name).split("/") if part != ".")
    if isinstance(target, str):
        return Member(name, header.part, problem=target)
    if target.kind not in ("file", "sparse"):
        what = f"a {target.kind}" if target is header else f"a link to a {target.kind}"
        return Member(name, header.part, problem=f"unreadable: {what}, not a picture", kind=target.kind)
    problem = "damaged: the tar ends within this file" if target.cut else ""
    return Member(name, header.part, target.start, target.size, target.kind == "sparse", problem, text=target.text)


def read_sparse(f: Any, start: int, size: int) -> bytes:
    """The bytes of a sparse member whose header is at `start`, `size` of them. Raises OSError where there is none."""
    f.seek(start)
    try:
        member = _opened(f).next()
    except Exception as error:  # of damaged headers `tarfile` raises what it likes
        raise OSError(f"no sparse file is there: {first_line(error)}") from error
    if member is None or not member.issparse() or member.size != size:
        raise OSError("no sparse file of that size is there")
    data = bytearray(size)
    f.seek(member.offset_data)
    for offset, length in _extents(member):
        piece = f.read(length) if offset + length <= size else b""
        if len(piece) < length:
            raise OSError("a sparse file of which a piece lies outside")
        data[offset : offset + length] = piece
    return bytes(data)


def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """(where they belong, how many) of the bytes that a sparse member has."""
    extents: list[tuple[int, int]] = getattr(member, "sparse", None) or []
    if any(offset < 0 or length < 0 for offset, length in extents):
        raise tarfile.ReadError("a sparse file of which a piece lies outside")
    return extents
