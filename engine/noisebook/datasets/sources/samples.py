"""Which pictures of a tar are rows, what goes along with each, and what is passed over."""

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from noisebook.datasets.sources.members import Member
from noisebook.images.folders import SUFFIXES, PassedOver, is_hidden

SIDECARS = ("cls", "json", "txt")  # endings of files that go along with a picture
Numbered = tuple[int, Member]  # a member, and which of the tar it is


@dataclass
class Row:
    """A picture of a tar, or a sample without one.

    number    of the picture in the tar
    key       what its key is to be, if no other row has it
    name      of the picture; of the first file, where there is none
    sidecars  ending -> what goes along
    """

    number: int
    key: str
    name: str
    picture: Member | None
    sidecars: dict[str, Member] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """Why it cannot be read: the code of the failure, and words."""
        if self.picture is None:
            return "no_image: no picture in this sample"
        if self.picture.problem:
            return self.picture.problem
        for ending, member in self.sidecars.items():
            if member.problem:
                code, _, words = member.problem.partition(": ")
                return f"{code}: its .{ending}: {words}"
        return ""


class Samples:
    """The rows of the members of one tar.

    Files of one name up to the first dot are a group. If the names of exactly one picture in it has no second dot, it is
    the picture of the sample, and the others are passed over. Else each picture is a row, and what goes along with it has
    its name up to the last dot. A name that comes again begins a new sample.

    suffix  the ending of the pictures that are taken, without the dot in front; empty: any
    """

    def __init__(self, passed: PassedOver, suffix: str = ""):
        self.passed, self.suffix = passed, suffix and f".{suffix}"

    def rows(self, members: Iterable[Member]) -> list[Row]:
        """In the order of the pictures."""
        groups: dict[tuple[int, str], list[Numbered]] = {}
        rows: list[Row] = []
        for number, member in enumerate(members):
            if self._out(member):
                continue
            if member.kind != "file":
                rows.append(Row(number, self._stem(member.name), member.name, member))
                continue
            folder, name = posixpath.split(member.name)
            group = posixpath.join(folder, name.partition(".")[0])
            groups.setdefault((member.part, group), []).append((number, member))
        for (_, group), files in groups.items():
            rows += self._of_group(group, files)
        return sorted(rows, key=lambda row: row.number)

    def _out(self, member: Member) -> bool:
        """Whether a member is passed over whatever stands beside it; it is counted."""
        taken = self._is_picture(member.name)
        if member.kind == "folder" and not taken:
            return True  # a folder is no file
        if any(map(is_hidden, member.name.split("/"))):
            if member.kind != "folder":
                self.passed.hidden(member.name, (*SUFFIXES, self.suffix) if self.suffix else SUFFIXES)
            return True
        if taken or (member.kind == "file" and _sidecar(member.name)):
            return False
        if member.kind != "file":
            self.passed.others[member.kind] += 1
        elif member.name.lower().endswith(SUFFIXES):
            self.passed.picture("other suffix")
        else:
            self.passed.other(member.name)
        return True

    def _is_picture(self, name: str) -> bool:
        return name.lower().endswith(self.suffix or SUFFIXES)

    def _stem(self, name: str) -> str:
        """The name of a picture, or of what goes along with one, without its ending."""
        if self.suffix and name.lower().endswith(self.suffix):
            return name[: -len(self.suffix)]
        return name.rpartition(".")[0]

    def _of_group(self, group: str, files: list[Numbered]) -> Iterator[Row]:
        first = {member.name for _, member in files if self._is_picture(member.name) and self._stem(member.name) == group}
        if len(first) != 1:
            yield from self._apart(group, files)
            return
        name = first.pop()
        for sample in _cut(files):
            if name not in sample:
                yield from self._apart(group, list(sample.values()))
                continue
            number, picture = sample.pop(name)
            yield Row(number, group, name, picture, self._sidecars(sample, group))
            for other in sample:
                if self._is_picture(other) or not _sidecar_of(other, group):
                    self._left(other)

    def _apart(self, group: str, files: list[Numbered]) -> Iterator[Row]:
        """Each picture is a row. Without any the whole is a sample that has none."""
        by_stem: dict[str, list[Numbered]] = {}
        for number, member in files:
            by_stem.setdefault(self._stem(member.name), []).append((number, member))
        pictures = {stem for stem, part in by_stem.items() if any(self._is_picture(m.name) for _, m in part)}
        if not pictures:
            number, member = files[0]
            yield Row(number, group, member.name, None)
            return
        for stem, part in by_stem.items():
            if stem not in pictures:
                for _, member in part:
                    self._left(member.name)
                continue
            for sample in _cut(part):
                sidecars = self._sidecars(sample, stem)
                rows = [(n, m) for full, (n, m) in sample.items() if self._is_picture(full)]
                for number, member in rows:
                    yield Row(number, stem, member.name, member, sidecars)
                if not rows:
                    number, member = next(iter(sample.values()))
                    yield Row(number, stem, member.name, None)

    def _sidecars(self, sample: dict[str, Numbered], stem: str) -> dict[str, Member]:
        """Ending -> what goes along with the pictures of this name. Of two that differ in case the first is taken."""
        sidecars: dict[str, Member] = {}
        for name, (_, member) in sample.items():
            ending = "" if self._is_picture(name) else _sidecar_of(name, stem)
            if ending and sidecars.setdefault(ending, member) is not member:
                self._left(name)
        return sidecars

    def _left(self, name: str) -> None:
        if self._is_picture(name):
            self.passed.picture("second picture of a sample")
        else:
            self.passed.other(name)


def _sidecar(name: str) -> str:
    """The ending of what goes along with a picture; empty for another file."""
    ending = name.rpartition(".")[2].lower()
    return ending if "." in name and ending in SIDECARS else ""


def _sidecar_of(name: str, stem: str) -> str:
    """The same, of what goes along with the picture that has this name without an ending."""
    return _sidecar(name) if name.rpartition(".")[0] == stem else ""


def _cut(files: list[Numbered]) -> Iterator[dict[str, Numbered]]:
    """Samples: a name that comes again begins a new one."""
    sample: dict[str, Numbered] = {}
    for number, member in files:
        if member.name in sample:
            yield sample
            sample = {}
        sample[member.name] = number, member
    if sample:
        yield sample


class Keys:
    """Keys that are given out once each."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def of(self, key: str, name: str) -> str:
        """The key; where it is taken the name, and after that the name with a number."""
        number = 1
        while key in self.taken:
            key = name if number == 1 else f"{name}~{number}"
            number += 1
        self.taken.add(key)
        return key
