"""README and docs: the examples run, the links lead somewhere, the tables are those of bench/results."""

import re
import subprocess
import sys

import pytest

from common import ROOT

DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def check(module):
    """Runs a script of bench/ with --check."""
    command = [sys.executable, "-m", f"bench.{module}", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tables_come_from_the_results():
    check("report")
    readme = (ROOT / "README.md").read_text()
    for name in ("kodak", "quality", "search", "threads"):
        assert f"<!-- {name} -->\n|" in readme, name
    measured = (ROOT / "bench/results/gpu_kernels.json").exists()
    assert ("Nothing here was measured on a GPU yet" in readme) != measured


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("findings.recipes", "findings/cifar10-recipes"),
        ("findings.latent", "findings/latent-photo"),
        ("findings.refining", "findings/refining-tokens"),
        ("findings.ideas", "findings/coding-ideas"),
        ("findings.tokens_in_use", "findings/tokens-in-use"),
        ("quality.hits", "calibration"),
        ("quality.rate_distortion", "rates"),
        ("quality.codecs", "rates"),
        ("quality.dial", "concepts"),
        ("quality.published", "published"),
        ("quality.cod", "cod"),
        ("quality.cod_latent", "cod"),
        ("reliability.whole_dataset", "datasets"),
        ("speed.tokenizing", "datasets"),
        ("speed.latent_speed", "performance"),
        ("speed.pipeline", "datasets"),
        ("speed.scaling", "scale"),
        ("reliability.fuzz", "reliability"),
        ("reliability.faults", "reliability"),
    ],
)
def test_findings_come_from_the_results(script, page):
    check(script)
    assert "| --- |" in (ROOT / f"docs/{page}.md").read_text()


def test_every_place_of_a_page_is_filled_by_a_script():
    """A place whose table has another name would keep its old figures, and no check would see it."""
    tables = "".join(path.read_text() for path in (ROOT / "bench").rglob("*.py"))
    places = {(path.name, name) for path in DOCS for name in re.findall(r"^<!-- (\w+) -->$", path.read_text(), re.MULTILINE)}
    assert len(places) > 40
    sections = {
        ("paper.md", function) for function in re.findall(r"^def (\w+)\(\) -> Iterator\[Row\]", tables, re.MULTILINE)
    }
    assert not {(page, name) for page, name in places - sections if f'"{name}": ' not in tables}


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def test_the_python_example_of_the_readme_runs():
    code = blocks(ROOT / "README.md", "python")[0].replace("512", "64").replace("768", "96")
    scope: dict = {}
    exec(code, scope)
    assert scope["decoded"].shape == (2, 3, 64, 96)
    assert scope["tokens"].shape == (2, len(scope["layout"]))


def test_commands_and_options_named_in_the_readme_exist(capsys):
    from noisebook.cli.main import VERBS, main

    helps = ""
    for command in VERBS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helps += capsys.readouterr().out
    section = (ROOT / "README.md").read_text().split("## Command line")[1].split("## Python")[0]
    for option in set(re.findall(r"`(--[a-z-]+)", section)):
        assert option in helps, option
    assert blocks(ROOT / "README.md", "bash")[0].count("\n") == 2, "two commands do all the set-up"


def test_every_option_of_a_command_in_the_docs_exists(capsys):
    from noisebook.cli.main import main

    helps: dict[str, str] = {}
    for path in DOCS:
        for line in "".join(blocks(path, "bash")).replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|\s)noisebook ([a-z][a-z-]+)((?: [^#&|]+)?)", line)
            if command is None:
                continue
            verb, given = command.groups()
            if verb not in helps:
                with pytest.raises(SystemExit) as stop:
                    main([verb, "--help"])
                assert stop.value.code == 0, f"{path.name}: no command {verb}"
                helps[verb] = capsys.readouterr().out
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", given):
                assert re.search(rf"{option}(?![\w-])", helps[verb]), f"{path.name}: {verb} has no {option}"
    assert len(helps) > 10


def test_the_format_page_has_every_key_beside_its_name_in_code():
    from dataclasses import fields

    from noisebook import CodecSpec
    from noisebook.spec import curve, spec

    page = (ROOT / "docs/format.md").read_text()
    for attribute, key in (spec.KEYS | curve.KEYS).items():
        assert f"| `{key}` | `{attribute}`" in page, key
    tables = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    for field in (*fields(CodecSpec), *fields(curve.Curve)):
        assert f"`{field.name}`" in tables, field.name
