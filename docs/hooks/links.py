"""Links that leave docs/: the site gets a page of its own for each file they lead to, so that no link needs a git host.

docs/x.md says ../engine/noisebook/codec/walk.py, as a git host wants it; in the site that is source/engine/.../walk.py, a
page with the file's text. Markdown is shown as a page and its own links are followed, a folder as the list of its
Markdown pages. A link to nothing stays unchanged, and `mkdocs build --strict` refuses it.

The navigation in mkdocs.yml may name such a page too: source/README.md is README.md.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

LINK = re.compile(r"\]\(([^)#\s]+)((?:#[^)\s]*)?)\)")
LANGUAGES = {".py": "python", ".json": "json", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".cpp": "cpp", ".h": "cpp"}
AS_IT_IS = "---\nsearch:\n  exclude: true\n---\n\n"  # words of code are not what a search of the documentation is for
SOURCE = "source"
origins: dict[str, Path] = {}  # name of a page in the site -> the file it shows


def on_files(files, config):
    """Adds a page for every file outside docs/ that the navigation names or a page links to."""
    docs = Path(config.docs_dir).resolve()
    named = set(_named(config.nav))
    origins.clear()
    origins.update({f.src_uri: Path(f.abs_src_path).resolve() for f in files.documentation_pages()})
    todo = [docs.parent / name.removeprefix(f"{SOURCE}/") for name in sorted(named)]
    todo += [t for path in origins.values() for t in _targets(path)]
    while todo:
        path = todo.pop()
        name = _page_of(path, docs)
        if not path.is_relative_to(docs) and name not in origins:
            origins[name] = path
            level = InclusionLevel.INCLUDED if name in named else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, name, content=_content(path, docs), inclusion=level))
            todo += _targets(path)
    return files


def on_page_markdown(markdown, page, config, files):
    """The page's links, from file to file, as links from page to page."""
    docs, origin = Path(config.docs_dir).resolve(), origins[page.file.src_uri]
    folder = posixpath.dirname(page.file.src_uri) or "."

    def moved(match):
        target = _resolved(origin, match[1])
        if target is None:
            return match[0]
        return f"]({posixpath.relpath(_page_of(target, docs), folder)}{match[2]})"

    return LINK.sub(moved, markdown)


def _named(nav: Any) -> list[str]:
    """What the navigation names below SOURCE: nav is a page, a list of entries, or a title with either of them."""
    if isinstance(nav, str):
        return [nav] if nav.startswith(f"{SOURCE}/") else []
    return [name for entry in (nav.values() if isinstance(nav, dict) else nav or ()) for name in _named(entry)]


def _targets(path: Path) -> list[Path]:
    """The files that a Markdown page, or each in a folder, links to."""
    if path.is_dir():
        return sorted(path.glob("*.md"))
    if path.suffix != ".md":
        return []
    targets = (_resolved(path, match[1]) for match in LINK.finditer(path.read_text()))
    return [target for target in targets if target is not None]


def _resolved(page: Path, target: str) -> Path | None:
    """The file that a link of the page leads to; None for an address, and where there is nothing."""
    path = (page.parent / target).resolve()
    return path if "://" not in target and path.exists() else None


def _page_of(path: Path, docs: Path) -> str:
    """The name, in the site's sources, of what shows that file."""
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    name = f"{SOURCE}/{path.relative_to(docs.parent).as_posix()}"
    return f"{name}/index.md" if path.is_dir() else name if path.suffix == ".md" else f"{name}.md"


def _content(path: Path, docs: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    title = f"{AS_IT_IS}# {path.relative_to(docs.parent).as_posix()}\n\n"
    if path.is_dir():
        return title + "".join(f"- [{p.stem}]({path.name}/{p.name})\n" for p in sorted(path.glob("*.md")))
    return f"{title}````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n````\n"
