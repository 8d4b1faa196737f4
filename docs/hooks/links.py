"""Links that leave docs/: the site gets a page of its own for each file they lead to, so that no link needs a git host.

docs/x.md says ../engine/noisebook/codec/codec.py, as a git host wants it; in the site that is source/engine/.../codec.py, a
page with the file's text. Markdown is shown as a page and its own links are followed, a folder as the list of its
Markdown pages. A link to nothing stays as it is, and `mkdocs build --strict` refuses it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

LINK = re.compile(r"\]\(([^)#\s]+)((?:#[^)\s]*)?)\)")
LANGUAGES = {".py": "python", ".json": "json", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".cpp": "cpp", ".h": "cpp"}
AS_IT_IS = "---\nsearch:\n  exclude: true\n---\n\n"  # words of code are not what a search of the documentation is for
SOURCE = "source"
README = f"{SOURCE}/README.md"  # the one page of them that the navigation names
origins: dict[str, Path] = {}  # name of a page in the site -> the file it shows


def on_files(files, config):
    """Adds a page for every file outside docs/ that a page links to, and for the README."""
    docs = Path(config.docs_dir).resolve()
    origins.clear()
    origins.update({f.src_uri: Path(f.abs_src_path).resolve() for f in files.documentation_pages()})
    todo = [docs.parent / "README.md", *(t for path in origins.values() for t in _targets(path))]
    while todo:
        path = todo.pop()
        name = _page_of(path, docs)
        if not path.is_relative_to(docs) and name not in origins:
            origins[name] = path
            named = InclusionLevel.INCLUDED if name == README else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, name, content=_content(path, docs), inclusion=named))
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


def _targets(path: Path) -> list[Path]:
    """The files that a Markdown page, or each in a folder, links to."""
    if path.is_dir():
        return sorted(path.glob("*.md"))
    if path.suffix != ".md":
        return []
    found = (_resolved(path, match[1]) for match in LINK.finditer(path.read_text()))
    return [target for target in found if target is not None]


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
