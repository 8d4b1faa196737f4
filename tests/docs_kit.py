"""The commands of README and docs: the blocks of a page, the marks before them, and what is done to run a page.

A block is a fence of bash or python. Marks are HTML comments in the lines directly before it:

    <!-- not run: GPU, words for the curious -->   it is not run; the first word is one of REASONS
    <!-- file: mine.py -->                         the reader puts it in a file, and so does the test
    <!-- keeps running -->                         it is started, and runs until the page is done
"""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import ROOT

REASONS = ("GPU", "hub", "cluster", "docker", "minutes", "fragment")
COMMANDS = ("bash", "python")
OTHER = ("", "text", "json", "html", "py")  # fences that nobody runs; `py`: signatures of docs/api.md
FENCE = re.compile(r"^((?: *<!--[^\n]*-->\n)*)( *)```(\w*)[^\n]*\n(.*?)^\2```[ ]*$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (not run: (?P<why>\w+)(?:, [^>]*)?|file: (?P<file>[\w./-]+)|(?P<keeps>keeps running)) -->")
INSTALL = re.compile(r"pip install (?:-e )?'?\.(?:\[(?P<extras>[\w,]+)\])?'?(?: [a-z][a-z0-9-]*)*(?=$|\s)")
STANDS_FOR = {"BACKBONE": "gaussian-prior", "PICTURE": "cat.png"}  # names that no file can have
FOR_DEVELOPERS = {"test", "dev", "docs"}  # an install line with these counts for its own line only


@dataclass(frozen=True)
class Block:
    """One fence of bash or python."""

    page: str
    line: int
    language: str
    text: str
    why: str | None = None  # it is not run, one of REASONS
    file: str | None = None
    keeps: bool = False

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Part:
    """Blocks of a page that run in one environment: the one that `pip install WORDS` makes, in a checkout."""

    install: str
    blocks: list[Block] = field(default_factory=list)


def pages() -> list[str]:
    """README.md and every page of docs/, as names below the checkout."""
    return ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """The bash and python blocks of a page, in order. Raises ValueError for a mark that is none and a fence of another
    language, in which commands could hide."""
    text = (ROOT / page).read_text() if text is None else text
    out = []
    for match in FENCE.finditer(text):
        marks, _, language, body = match.groups()
        line = text.count("\n", 0, match.end(1)) + 1
        if language not in COMMANDS:
            if language not in OTHER or re.search(r"^ *(\$ )?(noisebook|pip|python|torchrun) ", body, re.MULTILINE):
                raise ValueError(f"{page}:{line}: commands stand in ```bash or ```python, not in ```{language}")
            continue
        given: dict = {}
        for comment in re.findall(r"<!-- .*? -->", marks):
            mark = MARK.fullmatch(comment)
            if mark is None or (mark["why"] and mark["why"] not in REASONS):
                if re.fullmatch(r"<!-- /?\w+ -->", comment):  # the place of a table
                    continue
                raise ValueError(f"{page}:{line}: {comment} is no mark; there are: not run: {', '.join(REASONS)}")
            given |= {k: v for k, v in mark.groupdict().items() if v}
        made = Block(page, line, language, textwrap.dedent(body), given.get("why"), given.get("file"), "keeps" in given)
        out.append(made)
    if text.count("```") != 2 * len(FENCE.findall(text)):
        raise ValueError(f"{page}: a fence that is not closed, or that this test does not read")
    return out


def commands(text: str) -> list[str]:
    """The lines of a bash block, continued ones joined."""
    return text.replace("\\\n", " ").splitlines()


def parts_of(page: str, instead: dict[str, str]) -> list[Part]:
    """What of a page is run, cut where it says `pip install`: before that, and where it says nothing, in the plain install.
    Each part begins with the Python of those before it, whose names it may use.
    `instead`: what is printed -> what is run in its place."""
    parts = [Part(".")]

    def begin(words: str) -> None:
        if words != parts[-1].install:
            parts.append(Part(words, [b for b in parts[-1].blocks if b.language == "python"]))

    def add(block: Block, lines: list[str]) -> None:
        if lines:
            parts[-1].blocks.append(replace(block, text="\n".join(lines)))

    for block in blocks_of(page):
        if block.why:
            continue
        text = block.text
        for printed, run in instead.items():
            text = text.replace(printed, run)
        if block.language == "python":
            add(block, text.splitlines())
            continue
        lines: list[str] = []  # of this block, that are in no part yet
        for line in commands(text):
            install = INSTALL.match(line)
            if install is None:
                if line.startswith("pip "):
                    raise ValueError(f"{block.where}: {line}: a page installs the checkout, `pip install '.[EXTRA]'`")
                lines.append(as_run(line))
                continue
            add(block, lines)
            lines, before = [], parts[-1].install
            begin(install[0].removeprefix("pip install "))
            if rest := re.sub(r"^\s*(&&)?\s*(#.*)?", "", line[install.end() :]):
                lines.append(as_run(rest))
            if FOR_DEVELOPERS & set((install["extras"] or "").split(",")):
                add(block, lines)
                lines = []
                begin(before)
        add(block, lines)
    return [part for part in parts if part.blocks]


def as_run(line: str) -> str:
    """A line of bash: NAMES... in capitals are one name, [NAMES...] none, and what is to be written is not there yet."""
    line = re.sub(r" \[[A-Z]+\.\.\.\]", "", line)
    line = re.sub(r"\b([A-Z]+)\.\.\.", r"\1", line)
    for name, run in STANDS_FOR.items():
        line = re.sub(rf"\b{name}\b", run, line)
    output = re.search(r" -o ([A-Z]+)(?=\s|$)", line)
    return f"rm -rf {output[1]}; {line}" if output and "--resume" not in line else line


def capitals(part: Part) -> set[str]:
    """Names in capitals that the bash blocks of a part read before they have written them."""
    out: set[str] = set()
    for block in part.blocks:
        written: set[str] = set()
        for line in block.text.splitlines() if block.language == "bash" else ():
            words = shlex.split(line, comments=True)
            made = {b for a, b in zip(words, words[1:], strict=False) if a == "-o"}
            out |= {w for w in words if re.fullmatch(r"[A-Z]{2,}", w)} - made - written - {"rm"}
            written |= made
    return out


def make_environment(path: Path, words: str, checkout: Path) -> None:
    """The virtual environment that `pip install WORDS` makes in a checkout; one that is there is replaced."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
    line = f"pip install --quiet --disable-pip-version-check {words}"
    done = subprocess.run(["bash", "-c", line], cwd=checkout, env=surroundings(path), capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def surroundings(environment: Path, home: Path | None = None) -> dict[str, str]:
    """The variables of somebody who has activated that environment, and nothing else of ours."""
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "LANG", "LC_")) or k == "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(environment / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
    return {**kept, "PATH": path, "HOME": str(home or Path.home()), "NOISEBOOK_CACHE": "off", "HF_HUB_OFFLINE": "1"}
