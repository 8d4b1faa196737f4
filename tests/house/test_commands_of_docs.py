"""Every command on every page: it runs, or it is marked with the reason why not, and those are counted.

The default run looks at the marks only. `pytest -m slow tests/house/test_commands_of_docs.py -k tutorial` runs a page, in an
environment that the page's own install line makes; NOISEBOOK_TEST_ENVIRONMENTS=FOLDER keeps the environments for the next
time (remove it after a change of the package).
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import docs_kit
import pytest
from docs_kit import INSTALL, blocks_of, capitals, make_environment, pages, parts_of, surroundings
from docs_pages import AS_RUN, NAMES, SCOPE, furnish, granted

from common import ROOT

#: blocks that are not run, by page and reason
NOT_RUN = {
    "docs/datasets.md": {"GPU": 2},
    "docs/docker.md": {"docker": 2},
    "docs/howto/eight-gpus.md": {"GPU": 1},
    "docs/howto/imagenet.md": {"GPU": 1},
    "docs/howto/stable-diffusion.md": {"hub": 2},
    "docs/performance.md": {"GPU": 1},
    "docs/published.md": {"hub": 1},
    "docs/scale.md": {"GPU": 2, "cluster": 2},
}

RUN = [page for page in pages() if any(not block.why for block in blocks_of(page))]


def test_marked_blocks_are_counted():
    found = {page: dict(Counter(b.why for b in blocks_of(page) if b.why)) for page in pages()}
    assert {page: counts for page, counts in found.items() if counts} == NOT_RUN, "a block that is not run is counted"


def test_most_blocks_run():
    run, marked = 0, Counter()
    for page in pages():
        blocks = blocks_of(page)
        run += sum(b.why is None for b in blocks)
        marked.update(b.why for b in blocks if b.why)
    assert run > 1.5 * sum(marked.values()), (run, marked)


@pytest.mark.parametrize("page", RUN)
def test_blocks_can_be_read(page):
    """Python compiles, bash parses, and every name in capitals is one that a test can make."""
    for part in parts_of(page, AS_RUN.get(page, {})):
        assert INSTALL.fullmatch(f"pip install {part.install}")
        for block in part.blocks:
            if block.language == "python":
                compile(block.text, block.where, "exec")
            else:
                subprocess.run(["bash", "-n", "-c", block.text], check=True)
        assert capitals(part) <= set(NAMES), f"{page}: docs_pages.NAMES says what stands for a name in capitals"


def test_what_is_replaced_is_there():
    for page, replaced in AS_RUN.items():
        text = "\n".join(block.text for block in blocks_of(page) if not block.why)
        for printed in replaced:
            assert printed in text, f"{page} no longer says {printed!r}"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("```console\nx\n```\n", "not in ```console"),
        ("```\nnoisebook encode x\n```\n", "commands stand in"),
        ("<!-- not run: bored -->\n```bash\nx\n```\n", "is no mark"),
        ("<!-- not-run: GPU -->\n```bash\nx\n```\n", "is no mark"),
        ("```bash\nx\n", "not closed"),
    ],
)
def test_a_way_to_hide_a_block_is_seen(text, word):
    with pytest.raises(ValueError, match=word):
        blocks_of("page.md", text)


def test_marks_and_blocks_are_read():
    text = "<!-- not run: GPU, big -->\n```bash\na\n```\n\n- x\n  <!-- file: m.py -->\n  ```python\n  b\n  ```\n"
    first, second, third = blocks_of("page.md", text + "<!-- keeps running -->\n```bash\nc\n```\n")
    assert (first.why, first.line, first.text) == ("GPU", 2, "a\n")
    assert (second.file, second.language, second.text) == ("m.py", "python", "b\n")
    assert third.keeps


def test_a_page_is_cut_where_it_installs(monkeypatch):
    text = "```python\na = 1\n```\n```bash\npip install '.[metrics]'  # now\nnoisebook eval X... -o DIR\n```\n"
    text += "```bash\npip install . && one\npip install -e '.[test]' && pytest\ntwo \\\n    three\n```\n"
    monkeypatch.setattr(docs_kit, "blocks_of", lambda page: blocks_of(page, text))
    parts = [(part.install, [block.text for block in part.blocks]) for part in parts_of("page.md", {"eval": "EVAL"})]
    assert parts == [
        (".", ["a = 1"]),
        ("'.[metrics]'", ["a = 1", "rm -rf DIR; noisebook EVAL X -o DIR"]),
        (".", ["a = 1", "one"]),
        ("-e '.[test]'", ["a = 1", "pytest"]),
        (".", ["a = 1", "two      three"]),
    ]
    text = "```bash\npip install 'noisebook[x]'\n```\n"
    with pytest.raises(ValueError, match="installs the checkout"):
        parts_of("page.md", {})


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of this tree, without what builds leave behind."""
    to = tmp_path_factory.mktemp("checkout") / "noisebook"
    left_out = shutil.ignore_patterns(".git", "*.so", "build", "*.egg-info", "__pycache__", ".pytest_cache", "site")
    shutil.copytree(ROOT, to, ignore=left_out)
    return to


@pytest.fixture(scope="session")
def environment(tmp_path_factory, checkout):
    """A function: the words after `pip install` -> the folder of a virtual environment that they made in a checkout."""
    kept = os.environ.get("NOISEBOOK_TEST_ENVIRONMENTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("environments")

    def get(words: str) -> Path:
        path = folder / (re.sub(r"\W+", "-", words).strip("-") or "plain")
        if not (path / "done").exists():
            make_environment(path, words, checkout)
            (path / "done").touch()
        return path

    yield get
    if not kept:
        shutil.rmtree(folder)  # a gigabyte each


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", RUN)
def test_every_command_of_a_page_runs(page, tmp_path, environment):
    folder = tmp_path / "reader"
    folder.mkdir()
    parts = parts_of(page, AS_RUN.get(page, {}))
    furnish(folder, granted(parts))
    (tmp_path / "home").mkdir()
    failed = []
    for i, part in enumerate(parts):
        venv, blocks = environment(part.install), [asdict(block) | {"where": block.where} for block in part.blocks]
        if "metrics" in part.install:  # an index with torch for CPUs only brings a torchvision for CUDA, which does not load
            fits = subprocess.run([str(venv / "bin/python"), "-c", "import torchvision"], capture_output=True, text=True)
            if fits.returncode:
                pytest.skip(f"torchvision does not fit torch here: {fits.stderr.strip().splitlines()[-1]}")
        if page in SCOPE:
            blocks.insert(0, {"where": "assumed", "language": "python", "text": SCOPE[page], "file": None, "keeps": False})
        (tmp_path / f"{i}.json").write_text(json.dumps(blocks))
        done = subprocess.run(
            [str(venv / "bin/python"), str(ROOT / "tests/run_page.py"), str(tmp_path / f"{i}.json")],
            cwd=folder,
            env=surroundings(venv, tmp_path / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout)
        lines = done.stdout.splitlines()
        failed += json.loads(lines[-1]) if lines and lines[-1].startswith("[") else [f"{page}: the run broke off"]
    assert not failed, "\n".join(failed)
