"""Docstrings of this project are plain text with aligned definitions; the site's API pages want Markdown.

name     what it is, on a line, its
         continuation under it

becomes a definition list; text indented by four is code already; all else are paragraphs, of which one that begins with
"Raises" stands alone. Nothing in a docstring is markup but `code`. A trailing comment of an attribute is its docstring.
"""

import re
from typing import Any

import griffe

TERM = re.compile(r"(\S.*?) {2,}(\S.*)")
PAGE = re.compile(r"docs/([\w/-]+)\.md")


def markdown(text: str) -> str:
    """The Markdown that shows a docstring."""
    return "\n\n".join(_paragraph(part.splitlines()) for part in re.split(r"\n\s*\n", text))


def _paragraph(lines: list[str]) -> str:
    """Lines without an empty one between them: definitions, where one is aligned like that, and text."""
    if lines[0].startswith("    "):
        return "\n".join(lines)
    out: list[str] = []
    inside = False  # a definition, which lines with an indent continue
    for line in lines:
        term = TERM.fullmatch(line)
        if term and not line.startswith(" "):
            out.append(f"\n{_names(term[1])}\n:   {_text(term[2])}")
            inside = True
        elif line.startswith(" ") and inside:
            out.append("    " + _text(line.strip()))
        else:
            out.append(("\n" if inside or line.startswith("Raises ") else "") + _text(line.strip()))
            inside = False
    return "\n".join(out)


def _names(term: str) -> str:
    """What is defined, each name of it as code."""
    return ", ".join(f"`{name}`" if name.isidentifier() else _text(name) for name in term.split(", "))


def _text(line: str) -> str:
    """A line in which nothing but `code` is markup; pages of docs/ become links."""
    parts = line.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\\*_\[\]])", r"\\\1", parts[i].replace("&", "&amp;").replace("<", "&lt;"))
        parts[i] = PAGE.sub(lambda m: f"[docs/{m[1]}.md]({m[1]}.md)", parts[i])
    return "`".join(parts)


class Docstrings(griffe.Extension):
    """What mkdocstrings loads: rewrites each docstring once, as it is read."""

    def on_instance(self, *, node: Any, obj: griffe.Object, agent: Any, **kwargs: Any) -> None:
        if isinstance(obj, griffe.Attribute) and obj.docstring is None and obj.lineno:
            line = obj.lines[0] if obj.lines else ""
            if comment := re.search(r"  # (?!type:|pyright:|fmt:)(.+)", line):
                obj.docstring = griffe.Docstring(comment[1], parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
