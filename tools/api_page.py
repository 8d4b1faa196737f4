"""Writes signatures and docstrings of the code into docs/api.md, so that the page can be read on a git host.

    python -m tools.api_page            # writes
    python -m tools.api_page --check    # exit code 1 where the page is not that of the code

What stands between `<!-- api NAME -->` and `<!-- /api -->` is made from the function, class or module NAME; words after a
module's name are the only members that are shown, and after a class `inherited` adds what it has from others of the package.
The text is the code's own, without bodies. The site shows the same places in its own way (docs/hooks/api.py).
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[1] / "docs/api.md"
PLACE = re.compile(r"<!-- api (?P<name>[\w.]+)(?P<words>[\w ]*) -->\n.*?<!-- /api -->", re.DOTALL)
SHOWN = (
    "property",
    "cached_property",
    "classmethod",
    "staticmethod",
    "overload",
    "dataclass",
)  # decorators that say how to call
INHERITED = "inherited"

Definition = ast.FunctionDef | ast.ClassDef


def found(name: str) -> Any:
    """The module, class or function of a dotted name."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        return importlib.import_module(name)


def tree_of(thing: Any) -> tuple[ast.Module, list[str]]:
    """The syntax tree of the source of a module, class or function, and its lines."""
    text = textwrap.dedent(inspect.getsource(thing))
    return ast.parse(text), text.splitlines()


def is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def docstring_of(node: Definition, lines: list[str]) -> list[str]:
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return lines[first.lineno - 1 : first.end_lineno] if is_text else []


def decorators_of(node: Definition, lines: list[str]) -> list[str]:
    names = [(ast.unparse(d.func if isinstance(d, ast.Call) else d), d) for d in node.decorator_list]
    return [lines[d.lineno - 1] for name, d in names if name in SHOWN]


def function(node: ast.FunctionDef, lines: list[str]) -> list[str]:
    """Signature and docstring."""
    text = docstring_of(node, lines)
    return [*decorators_of(node, lines), *signature_of(node, lines, bool(text)), *text]


def signature_of(node: Definition, lines: list[str], has_text: bool) -> list[str]:
    """The lines of a definition to its colon, with ... where nothing follows."""
    body = node.body[0].lineno - 1
    if body < node.lineno or not lines[body - 1].split("  #")[0].endswith(":"):  # the body is on the last of them
        return lines[node.lineno - 1 : body + 1]
    return [*lines[node.lineno - 1 : body - 1], lines[body - 1] + ("" if has_text else " ...")]


def fields_of(node: ast.ClassDef, lines: list[str], taken: set[str]) -> list[str]:
    """The attributes in a class's body, but those that are `taken`, to which they are added."""
    is_enum, out = any("Enum" in ast.unparse(base) for base in node.bases), []
    for part in node.body:
        target = (
            part.target if isinstance(part, ast.AnnAssign) else part.targets[0] if isinstance(part, ast.Assign) else None
        )
        if isinstance(target, ast.Name) and is_public(target.id) and (is_enum or not target.id.isupper()):
            out += lines[part.lineno - 1 : part.end_lineno] if target.id not in taken else []
            taken.add(target.id)
    return out


def methods_of(node: ast.ClassDef, lines: list[str], taken: set[str]) -> dict[str, list[str]]:
    """The public methods in a class's body, overloads together, but those that are `taken`, to which they are added."""
    out: dict[str, list[str]] = {}
    for part in node.body:
        if (
            isinstance(part, ast.FunctionDef)
            and part.name not in taken
            and (is_public(part.name) or part.name == "__init__")
        ):
            out.setdefault(part.name, []).extend([*function(part, lines), ""])
    taken |= out.keys()
    return out


def class_(thing: type, inherited: bool) -> list[str]:
    """The class without the bodies of its methods."""
    attributes, methods, taken = [], dict[str, list[str]](), set[str]()
    for kind in (thing, *(base for base in thing.__mro__[1:] if inherited and base.__module__.startswith("noisebook"))):
        tree, lines = tree_of(kind)
        (node,) = tree.body
        assert isinstance(node, ast.ClassDef)
        if kind is thing:
            head, text = [*decorators_of(node, lines), *signature_of(node, lines, True)], docstring_of(node, lines)
        attributes += fields_of(node, lines, taken)
        methods |= methods_of(node, lines, taken)
    methods = {name: methods[name] for name in sorted(methods, key=lambda name: name != "__init__")}
    parts = [part for part in (text, attributes, *(lines[:-1] for lines in methods.values())) if part]
    return [*head, *[line for part in parts for line in (*part, "")][:-1]] if parts else [*head, "    ..."]


def entry(name: str, thing: Any, inherited: bool = False) -> list[str]:
    """The heading and the code of one name."""
    if inspect.isclass(thing):
        code = class_(thing, inherited)
    else:
        tree, lines = tree_of(thing)
        (node,) = tree.body
        assert isinstance(node, ast.FunctionDef)
        code = function(node, lines)
    return [f"### `{name}`", "", "```py", *code, "```", ""]


def entries(name: str, words: list[str]) -> list[str]:
    """What belongs between the marks of a place."""
    thing = found(name)
    if not isinstance(thing, ModuleType):
        return entry(name, thing, INHERITED in words)
    defined = [node.name for node in tree_of(thing)[0].body if isinstance(node, Definition)]
    shown = words or [each for each in defined if is_public(each)]
    return [line for each in shown for line in entry(f"{name}.{each}", getattr(thing, each))]


def written(text: str) -> str:
    """The page with every place filled from the code."""

    def fill(place: re.Match[str]) -> str:
        begin = place[0].partition("\n")[0]
        return "\n".join([begin, "", *entries(place["name"], place["words"].split()), "<!-- /api -->"])

    return PLACE.sub(fill, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is another")
    args = parser.parse_args()
    text = PAGE.read_text()
    made = written(text)
    if args.check and made != text:
        print("docs/api.md is not that of the code: run python -m tools.api_page", file=sys.stderr)
        return 1
    if not args.check:
        PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
