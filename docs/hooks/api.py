"""docs/api.md has what tools/api_page.py wrote, for readers on a git host. In the site mkdocstrings shows the same names,
with links and a table of contents."""

import re
from pathlib import Path

PLACE = re.compile(r"<!-- api ([\w.]+)([\w ]*) -->\n.*?<!-- /api -->", re.DOTALL)
ENGINE = Path(__file__).parents[2] / "engine"
NO_HEADING = ("show_root_heading: false", "show_root_toc_entry: false")


def on_page_markdown(markdown, page, config, files):
    """The page with a directive of mkdocstrings in each place."""
    return PLACE.sub(_directive, markdown) if page.file.src_uri == "api.md" else markdown


def _directive(place):
    name, words, options = place[1], place[2].split(), []
    if (ENGINE / f"{name.replace('.', '/')}.py").exists():  # a module, or some of its members
        options = [*NO_HEADING, *([f"members: [{', '.join(words)}]"] if words else [])]
    elif words:
        options = ["inherited_members: true"]
    return "\n".join([f"::: {name}", *(["    options:"] if options else []), *(f"      {option}" for option in options)])
