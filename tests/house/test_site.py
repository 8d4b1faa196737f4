"""The documentation as a site: it builds, every page of its navigation is there, nothing is fetched from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="pip install 'noisebook[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'noisebook[docs]'")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)  # strict: a dead link or anchor is an error
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_of_the_navigation_is_built(site):
    pages = re.findall(r": (\S+\.md)", (ROOT / "mkdocs.yml").read_text().split("nav:")[1])
    assert len(pages) > 15
    for page in pages:
        assert (site / page.replace("README.md", "index.html").replace(".md", ".html")).exists(), page


def test_every_page_of_docs_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().split("nav:")[1]
    for path in (ROOT / "docs").rglob("*.md"):
        assert path.relative_to(ROOT / "docs").as_posix() in nav, path


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        found = re.findall(
            r"<(?:script|link|img|iframe|source)[^>]*(?:src|href)=[\"']?(https?://[^\"' >]+)", path.read_text()
        )
        assert not [url for url in found if "canonical" not in url], path


def test_the_public_names_are_rendered(site):
    import noisebook

    page = (site / "api.html").read_text()
    data = ("TokenDataset", "TokenStream", "TokenizeBatch", "tokenize", "export", "TrainingJob", "run_training")
    for name in (*noisebook.__all__, "Codec.encode", "Codec.decode", "Recipe", "Container", *data):
        if name != "__version__":
            assert re.search(rf'id="noisebook[\w.]*\b{re.escape(name)}"', page), name
    assert "float32 [B, C, H, W]" in page
