"""README and docs: the examples run, the links lead somewhere, the tables are those of bench/results and of the parsers."""

import importlib
import re
import shlex
import sys
import tomllib

import pytest
import torch

from common import ROOT
from noisebook.cli.main import VERBS, main
from noisebook.images.files import encode_picture

DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.fixture
def check(monkeypatch):
    """Runs a script with --check: SystemExit with words, where its page is not what the results say."""

    def run(module):
        monkeypatch.setattr(sys, "argv", [module, "--check"])
        importlib.import_module(module).main()

    return run


def test_tables_come_from_the_results(check):
    check("bench.report")
    readme, speed = (ROOT / "README.md").read_text(), (ROOT / "docs/performance.md").read_text()
    pages = {"rates": ["kodak"], "codebook": ["quality"], "performance": ["search", "threads"]}
    places = [((ROOT / f"docs/{page}.md").read_text(), name) for page, names in pages.items() for name in names]
    for text, name in [(readme, "presets"), *places]:
        assert f"<!-- {name} -->\n|" in text, name
    measured = [(ROOT / f"bench/results/{name}.json").exists() for name in ("gpu_kernels", "gpu_throughput", "codecs")]
    assert ("Nothing here was measured on a GPU yet" in speed) != (measured[0] or measured[1])
    assert ("Nothing was measured on a GPU yet" in readme) != measured[1]
    assert ("<!-- codecs -->\n![" in readme) == measured[2]


def test_the_tables_of_options_are_those_of_the_parsers(check):
    check("tools.cli_page")
    page = (ROOT / "docs/cli.md").read_text()
    for name in VERBS:
        assert f"\n### `noisebook {name}`\n" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(cell.strip() for line in rows for cell in line.replace("\\|", "/").split("|")[1:-1]), "an empty cell"


def test_the_page_of_the_command_line_has_every_exit_code():
    from noisebook import errors

    codes = {e.code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.NoisebookError)}
    page = (ROOT / "docs/cli.md").read_text().split("## Exit codes")[1].split("## Options")[0]
    named = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE) for code in cell.split(",")}
    assert named == codes | {0, errors.SALVAGED, 70, 130, 141}


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
        ("quality.one_walk", "concepts"),
        ("quality.published", "published"),
        ("quality.tokenizers", "tokenizers"),
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
def test_findings_come_from_the_results(script, page, check):
    check(f"bench.{script}")
    assert "| --- |" in (ROOT / f"docs/{page}.md").read_text()


def test_every_place_of_a_page_is_filled_by_a_script():
    """A place whose table has another name would keep its old figures, and no check would see it."""
    tables = "".join(path.read_text() for folder in ("bench", "tools") for path in (ROOT / folder).rglob("*.py"))
    places = {(path.name, name) for path in DOCS for name in re.findall(r"^<!-- (\w+) -->$", path.read_text(), re.MULTILINE)}
    assert len(places) > 40
    sections = {
        ("paper.md", function) for function in re.findall(r"^def (\w+)\(\) -> Iterator\[Row\]", tables, re.MULTILINE)
    }
    assert not {(page, name) for page, name in places - sections if f'"{name}": ' not in tables}


def test_the_api_page_has_the_signatures_of_the_code():
    from tools.api_page import PAGE, PLACE, found, written

    text = PAGE.read_text()
    assert written(text) == text, "run python -m tools.api_page"
    assert text.count("<!-- api ") == len(PLACE.findall(text)) > 40
    for name, signature in (
        ("noisebook.load", "    bpp: float | None = None,"),
        ("noisebook.codec.codec.Codec", "    def tokens_per_image(self, size: tuple[int, int] | None = None) -> int:"),
        (
            "noisebook.codec.codec.Codec",
            "        read_picture: PictureReader | None = None,",
        ),  # of a base, which has __init__
        ("noisebook.spec.step.StepIndex", "    START = -1  # the codebook start"),
        ("noisebook.codec.walk", "class Parts:"),
    ):
        (place,) = (match[0] for match in PLACE.finditer(text) if match["name"] == name)
        assert f"\n{signature}\n" in place, name
        assert written(text.replace(signature, "")) == text
        assert found(name).__doc__.partition("\n")[0] in place or name == "noisebook.codec.walk"
    assert "return " not in "".join(line for line in text.splitlines() if line.startswith("        ret")), "no bodies"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def test_the_readme_is_a_page_to_land_on():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert "to reach" not in text, "targets are not for readers"
    run, tests = blocks(ROOT / "README.md", "bash")[0].splitlines()
    assert (run.split("#")[0].strip(), "# RUN" in run) == ("pip install . && noisebook roundtrip --samples", True)
    assert ("pytest" in tests, "# TEST" in tests) == (True, True)
    table = re.findall("^((?:`[a-z]+`,? ?)+)\\|", text.split("## Extras")[1].replace("\n| ", "\n"), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall("[a-z]+", "".join(table))) == set(extras)


def test_every_block_of_the_readme_runs(tmp_path, monkeypatch):
    """In one empty folder, on smaller pictures; test_first_hour.py runs them unchanged. The two commands are run by CI."""
    monkeypatch.chdir(tmp_path)
    codec, own, data = blocks(ROOT / "README.md", "python")
    codec = codec.replace('sample("coffee")', 'sample("coffee")[100:164, 200:296]').replace("400, 600", "64, 96")
    scope: dict = {}
    exec(codec, scope)
    assert scope["decoded"].shape == scope["coarse"].shape == (1, 3, 64, 96)
    assert (scope["decoded"].dtype, scope["coarse"].dtype) == (torch.uint8, torch.float32)
    assert not torch.equal(scope["codec"].decode(scope["tokens"], (64, 96)), scope["coarse"])
    assert scope["tokens"].shape == (1, len(scope["layout"]))
    exec(own, scope)
    assert f"# {scope['mine'].tokens_per_image((64, 96))} tokens, whatever the size" in own
    tokens, seen = scope["mine"].reconstruct(torch.from_numpy(scope["image"]).permute(2, 0, 1)[None])
    assert torch.equal(seen, scope["mine"].decode(tokens, (64, 96)))
    (tmp_path / "noisebook-out").mkdir()
    (tmp_path / "noisebook-out/a.nbk").write_bytes(encode_picture(scope["codec"], scope["image"]))
    _, commands = blocks(ROOT / "README.md", "bash")
    for line in commands.splitlines():
        program, verb, *arguments = shlex.split(line, comments=True)
        assert program == "noisebook"
        assert main([verb, *arguments, *(["--workers", "0"] if verb == "tokenize" else [])]) == 0, line
    exec(data, scope)
    row = scope["row"]
    assert (str(row["tokens"].dtype), row["height"], row["width"]) == ("uint16", 64, 96)


def test_commands_and_options_named_on_their_page_exist(capsys):
    helps = ""
    for command in VERBS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helps += capsys.readouterr().out
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs/cli.md").read_text()))
    assert len(named) > 60
    for option in named - {"--help"}:
        assert option in helps, option
    assert blocks(ROOT / "README.md", "bash")[0].count("\n") == 2, "two commands do all the set-up"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_nobody_installs_a_name_that_a_stranger_could_take(path):
    """Until there is a release: a checkout or a wheel's path."""
    assert not re.findall(r"""pip install[^`\n&#]* ['"]?noisebook\b(?![\w-]*\.)""", path.read_text())


def test_every_option_of_a_command_in_the_docs_exists(capsys):
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
