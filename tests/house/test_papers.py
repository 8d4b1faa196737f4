"""What surrounds the code: what a wheel is made of, citation, workflows, forms and hooks."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import noisebook
from common import ROOT

pytestmark = pytest.mark.quick

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FORMS = sorted(p.name for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
BUILT = (".pyc", ".so", ".pyd", ".dylib")


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix not in BUILT}


def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    """Without the extension, which takes a compiler; test_package.py builds the whole wheel, by way of the sdist."""
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == files(ROOT / "engine") | files(ROOT / "kernels")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in BUILT]


def test_the_release_refuses_a_wheel_without_its_extension(tmp_path):
    """The command by which cibuildwheel tests each wheel, with the extension and without it."""
    command = PYPROJECT["tool"]["cibuildwheel"]["test-command"].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    broken = command.replace("import noisebook._C", "import sys; sys.modules['noisebook._C'] = None; import noisebook._C")
    done = subprocess.run(broken, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert "import of noisebook._C halted" in done.stderr


def test_citation_and_changelog_are_of_this_version():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == noisebook.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert citation["authors"] == [{"name": "The noisebook authors"}]
    pages = "".join(p.read_text() for p in (ROOT / "docs").rglob("*.md"))
    for paper in citation["references"]:
        assert {"title", "authors", "year", "url"} <= paper.keys()
        assert paper["url"].removeprefix("https://arxiv.org/abs/") in pages, f"no page of docs/ cites {paper['title']}"
    versions = re.findall("^## (.+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == ["Unreleased", noisebook.__version__]


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_can_be_read_and_keep_no_secret(name):
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    for job in workflow["jobs"].values():
        assert {"runs-on", "timeout-minutes"} <= job.keys()
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v1)", step.get("uses", "a/b@v1"))


def test_ci_runs_the_command_that_contributors_run():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    assert (ROOT / ".ci/run").exists()


def test_only_a_tag_publishes_and_only_what_was_built():
    jobs = read(".github/workflows/release.yml")["jobs"]
    publish = jobs.pop("publish")
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert publish["environment"]
    assert publish["permissions"] == {"id-token": "write"}
    assert set(publish["needs"]) == set(jobs)
    assert not any("permissions" in job for job in jobs.values())
    platforms = [platform["name"] for platform in jobs["wheels"]["strategy"]["matrix"]["include"]]
    assert platforms == ["linux-x86_64", "linux-aarch64", "macos-arm64"]


@pytest.mark.parametrize("name", FORMS)
def test_issue_forms_can_be_filled_in(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    assert {"name", "description"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_hooks_check_what_ci_checks():
    hooks = {hook["id"]: hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert all(hook["entry"] and hook["language"] in ("system", "python") for hook in hooks.values())
    assert {"ruff-check", "ruff-format", "clang-format"} <= set(hooks)
    for line in ("ruff check", "ruff format"):
        assert line in (ROOT / ".ci/run").read_text()
