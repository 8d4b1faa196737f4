"""What imports what in a package, measured from its syntax trees; test_walls.py holds it against ARCHITECTURE.md.

A room is the first part of a path below the package. An arrow is an ordered pair of rooms, one of which imports from the
other, also inside a function or for type checking only. Floors are the longest chain of arrows. Every way to import counts:
`import a.b`, `from a import b`, relative imports, `import a` with `a.b` used, `import_module("a.b")` and `__import__`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

FRONT = "__init__"  # the package's own __init__.py
TYPED = {"noisebook.backbones.factory"}  # imports the module that a user types, and nothing else by a name made at run time


@dataclass(frozen=True)
class Import:
    """Module `name` imported in line `line` of a file; `deep`: inside a function, so that it runs later or never."""

    name: str
    line: int
    deep: bool


@cache
def nodes_of(text: str) -> list[tuple[ast.stmt | ast.expr, bool]]:
    """The nodes of a file that may name a module, and whether they stand in a function."""
    found: list[tuple[ast.stmt | ast.expr, bool]] = []
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(text), False)]
    for node, deep in todo:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Attribute, ast.Call)):
            found.append((node, deep))
        deep = deep or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        todo += [(child, deep) for child in ast.iter_child_nodes(node)]
    return found


class House:
    """A package in a folder: its files, what they import, and what that makes of its rooms."""

    def __init__(self, folder: Path):
        self.folder, self.package = folder, folder.name
        self.files = {self.module(path): path for path in sorted(folder.rglob("*.py"))}

    def module(self, path: Path) -> str:
        """The dotted name of a file: noisebook.codec.walk; a folder's __init__.py has the folder's."""
        parts = path.relative_to(self.folder.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def room(self, module: str) -> str:
        """noisebook.codec.walk -> codec; noisebook itself is the front door."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else FRONT

    @cached_property
    def imports(self) -> dict[str, list[Import]]:
        """What each module imports, of this package and of others, as dotted names."""
        return {module: list(self._imports(module, path)) for module, path in self.files.items()}

    def _imports(self, module: str, path: Path) -> Iterator[Import]:
        nodes = nodes_of(path.read_text())
        aliases = {self.package}
        for node, _ in nodes:
            if isinstance(node, ast.Import):
                aliases |= {alias.asname for alias in node.names if alias.name == self.package and alias.asname}
        for node, deep in nodes:
            for name in self._named(node, module, path, aliases):
                yield Import(name, node.lineno, deep)

    def _named(self, node: ast.AST, module: str, path: Path, aliases: set[str]) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
            return [f"{base}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            return [f"{self.package}.{node.attr}"]  # `import noisebook; noisebook.x`
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and node.args:
                return [self._text(node.args[0])]
        return []

    def _text(self, node: ast.expr) -> str:
        """The string of an argument, `*` where it is made at run time: that could be anything of the package."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            first = node.values[0]
            return str(first.value) + "*" if isinstance(first, ast.Constant) else "*"
        return "*"

    def target(self, name: str) -> str | None:
        """The module of this package that an imported name lies in; None for other packages."""
        if name == f"{self.package}._C" or name.startswith(f"{self.package}._C."):
            return None  # the C++ extension is no room
        while name.split(".")[0] == self.package:
            if name in self.files:
                return name
            name = name.rpartition(".")[0]
        return None

    @cached_property
    def links(self) -> dict[str, set[str]]:
        """Module -> modules of this package that it imports, itself left out."""
        links: dict[str, set[str]] = {module: set() for module in self.files}
        for module, imports in self.imports.items():
            for item in imports:
                target = self.target(item.name)
                if target is not None and target != module:
                    links[module].add(target)
        return links

    @cached_property
    def rooms(self) -> set[str]:
        return {self.room(module) for module in self.files} - {FRONT}

    @cached_property
    def arrows(self) -> set[tuple[str, str]]:
        """(room, the room that it imports from), the front door's own imports left out."""
        pairs = {(self.room(a), self.room(b)) for a, targets in self.links.items() for b in targets}
        return {(a, b) for a, b in pairs if a != b and a != FRONT}

    def floors(self) -> int:
        """Rooms on the longest chain of arrows. Raises ValueError where rooms import each other in a circle."""
        below: dict[str, set[str]] = {room: {b for a, b in self.arrows if a == room} for room in self.rooms}
        height: dict[str, int] = {}

        def climb(room: str, path: tuple[str, ...]) -> int:
            if room in path:
                raise ValueError(f"a circle of rooms: {' -> '.join((*path[path.index(room) :], room))}")
            if room not in height:
                height[room] = 1 + max((climb(b, (*path, room)) for b in below.get(room, ())), default=0)
            return height[room]

        return max(climb(room, ()) for room in self.rooms)

    def circles(self) -> list[list[str]]:
        """Circles between files: every module that can be reached from itself, once per circle."""
        found: list[list[str]] = []
        for module in self.files:
            if not any(module in circle for circle in found) and (circle := self._way_back(module)):
                found.append(circle)
        return found

    def _way_back(self, start: str) -> list[str]:
        """A shortest way from a module along imports back to itself; [] where there is none."""
        came: dict[str, str] = {}
        todo = [start]
        for module in todo:
            for target in sorted(self.links[module]):
                if target == start:
                    way = [module]
                    while way[-1] != start:
                        way.append(came[way[-1]])
                    return way[::-1]
                if target not in came:
                    came[target] = module
                    todo.append(target)
        return []


def picture(text: str) -> list[list[str]]:
    """The rows of rooms in the first fenced block of a page that has `cli` on top, top to bottom; words after two spaces
    are remarks."""
    for block in re.findall(r"```[^\n]*\n(.*?)```", text, re.S):
        rows = [re.split(r"\s{2,}", line.strip())[0].split(" · ") for line in block.splitlines() if line.strip()]
        if rows and "cli" in rows[0] + rows[min(1, len(rows) - 1)]:
            return rows
    raise ValueError("the page has no picture of the rooms")


def violations(house: House, rows: list[list[str]]) -> list[str]:
    """What breaks the rules of ARCHITECTURE.md, a line each."""
    row_of = {room: i for i, row in enumerate(rows) for room in row}
    lines = [f"{room}: a room that the picture does not have" for room in sorted(house.rooms - row_of.keys())]
    for module, imports in house.imports.items():
        room = house.room(module)
        for item in imports:
            where = f"{module}:{item.line}"
            top = item.name.split(".")[0]
            made = item.name.startswith("*") or (top == house.package and "*" in item.name)
            if made and (item.name != "*" or module not in TYPED):
                lines.append(f"{where}: imports a module by a name made at run time")
                continue
            if top == "argparse" and room != "cli":
                lines.append(f"{where}: argparse outside cli")
            if top == "torch" and room in ("spec", "format"):
                lines.append(f"{where}: torch in {room}")
            if top == "torch" and room == "rules" and not item.deep and not _for_types(house.files[module], item.line):
                lines.append(f"{where}: torch at module level of a rule")
            if top == "noisebook_kernels" and room != "codebook":
                lines.append(f"{where}: the kernels are the codebook's")
            target = house.target(item.name)
            if target is None:
                continue
            other = house.room(target)
            if other == FRONT and room != FRONT:
                lines.append(f"{where}: imports the front door, {item.name}")
            elif room == FRONT:
                if other == "codec" and not item.deep and not _for_types(house.files[module], item.line):
                    lines.append(f"{where}: the front door imports {other} before it is asked")
            elif other != room and other in row_of and room in row_of and row_of[other] <= row_of[room]:
                lines.append(f"{where}: {room} imports {other}, a room that is not below it")
    lines += [f"a circle of files: {' -> '.join([*circle, circle[0]])}" for circle in house.circles()]
    return lines


def _for_types(path: Path, line: int) -> bool:
    """Whether a line stands under `if TYPE_CHECKING:`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inside = node.lineno <= line <= (node.body[-1].end_lineno or node.lineno)
            if inside:
                return True
    return False
