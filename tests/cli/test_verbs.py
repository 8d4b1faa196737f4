"""Each verb is a module of cli/ with ABOUT, add and run; it is in the table, in the help and in docs/cli.md."""

import argparse
import ast
import re

import pytest

from common import ROOT
from noisebook.cli.main import VERBS, main

pytestmark = pytest.mark.quick

FOLDER = ROOT / "engine/noisebook/cli"


def top_level(path) -> set[str]:
    """Names of functions and constants that a file defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_every_file_with_a_verb_is_in_the_table_once():
    verbs = {path.stem for path in FOLDER.glob("*.py") if {"ABOUT", "add", "run"} <= top_level(path)}
    assert sorted(verb.__name__.rpartition(".")[2] for verb in VERBS.values()) == sorted(verbs)
    partly = {path.stem for path in FOLDER.glob("*.py") if {"ABOUT", "add", "run"} & top_level(path)}
    assert partly == verbs, "a file has some of ABOUT, add and run, but not all"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_says_what_it_does_and_takes_json(name, capsys):
    assert VERBS[name].ABOUT.endswith(".")
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert " ".join(VERBS[name].ABOUT.split()) in " ".join(text.split())


def test_the_page_of_the_command_line_has_a_line_for_every_verb():
    section = (ROOT / "docs/cli.md").read_text().split("```bash")[1].split("```")[0]
    named = set(re.findall(r"noisebook ([a-z-]+)", section))
    assert set(VERBS) <= named


def test_adding_a_verb_takes_a_module_and_a_line(monkeypatch, capsys):
    class Toy:
        ABOUT = "Says a word."

        @staticmethod
        def add(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("word")

        @staticmethod
        def run(args: argparse.Namespace) -> int:
            print(args.word, args.json)
            return 9

    monkeypatch.setitem(VERBS, "say", Toy())
    assert main(["say", "hello", "--json"]) == 9
    assert capsys.readouterr().out == "hello True\n"
