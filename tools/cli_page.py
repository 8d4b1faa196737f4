"""Writes the tables of docs/cli.md from the parsers of the command line: every option with its default and meaning.

    python -m tools.cli_page            # --check: only say whether the page is up to date

An option that several commands have with the same default and meaning is one row, which names them. What only one command
has is in a table of this command.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.lib.page import Tables, render
from noisebook.cli.main import VERBS, parser

PAGE = Path(__file__).resolve().parents[1] / "docs/cli.md"
GENERAL = "general"  # the group of options that argparse puts in none
CODEC = "codec"  # the group whose options have the preset's value unless they are given
DEFAULT = re.compile(r"\s*\(default:? ((?:[^()]|\([^()]*\))*)\)")  # as a help says it
DOCS = re.compile(r"docs/([\w/-]+\.md)")


@dataclass(frozen=True)
class Option:
    """What one command says about an option or argument. Two that are equal become one row."""

    group: str
    name: str
    default: str
    meaning: str


@cache
def options() -> dict[str, list[Option]]:
    """Of each command, in the order of its --help."""
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: list(_options(command)) for name, command in commands.choices.items()}


@cache
def commands() -> dict[Option, list[str]]:
    """The commands that have each option."""
    found: dict[Option, list[str]] = defaultdict(list)
    for name, some in options().items():
        for option in some:
            found[option].append(name)
    return found


def _options(command: argparse.ArgumentParser) -> Iterator[Option]:
    for group in command._action_groups:  # argparse has no public way to read a parser
        title = group.title if group.title not in ("options", "positional arguments", None) else GENERAL
        for action in group._group_actions:
            if not isinstance(action, argparse._HelpAction):
                yield option_of(title, action)


def option_of(group: str, action: argparse.Action) -> Option:
    """Raises SystemExit for one whose help says nothing beside its default."""
    name, said = name_of(action), (action.help or "") % vars(action)
    default = DEFAULT.search(said)
    meaning = said if default is None else said[: default.start()] + said[default.end() :]
    if not meaning:
        raise SystemExit(f"{name} has no help")
    if action.choices:
        meaning += f" ({', '.join(f'`{choice}`' for choice in action.choices)})"
    return Option(group, name, default[1] if default else default_of(group, action), meaning)


def name_of(action: argparse.Action) -> str:
    """As it is typed, in code: each spelling, the long one with what comes after it."""
    values = [""]
    if action.nargs != 0:
        names = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or action.dest.upper(),)
        dots = "..." if action.nargs in ("*", "+") else ""
        values = [text + dots for text in " ".join(names).split("|")]
    *others, last = action.option_strings or [""]
    return ", ".join(f"`{text}`" for text in (*others, f"{last} {values[0]}".strip(), *values[1:]))


def default_of(group: str, action: argparse.Action) -> str:
    """Where the help does not say it."""
    if action.required:
        return "must be given"
    if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
        return "no"
    if action.default in (None, [], ""):
        return "the preset's" if group == CODEC else "none"
    return str(action.default)


# ---- as Markdown --------------------------------------------------------------------------------------------------------
def row(*cells: str) -> str:
    return "| " + " | ".join(DOCS.sub(r"[\1](\1)", cell.replace("|", "\\|")) for cell in cells) + " |"


def coded(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(some: list[Option], named: bool = False) -> str:
    """named: with the commands that have each option."""
    head = ["option", "default", "meaning", *(["commands"] if named else [])]
    lines = [row(*head), row(*["---"] * len(head))]
    for option in some:
        of = commands()[option]
        last = ["all" if len(of) == len(VERBS) else coded(of)] if named else []
        lines.append(row(option.name, option.default, option.meaning, *last))
    return "\n".join(lines)


def shared() -> dict[str, list[Option]]:
    """Options that several commands have alike, by their group."""
    groups: dict[str, list[Option]] = defaultdict(list)
    for option, of in commands().items():
        if len(of) > 1:
            groups[option.group].append(option)
    return groups


def of_several() -> str:
    """A section for each group."""
    parts = []
    for group, some in shared().items():
        parts.append(f"### {group.capitalize()}")
        of = {tuple(commands()[option]) for option in some}
        parts += [f"{coded(*of)} take these."] if len(of) == 1 else []
        parts.append(table(some, named=len(of) > 1))
    return "\n\n".join(parts)


def of_each() -> str:
    """A section for each command: what it does, its own options, and which of the others it takes."""
    parts = []
    for name, some in options().items():
        own = [option for option in some if commands()[option] == [name]]
        others = [option for option in some if option not in own]
        parts += [f"### `noisebook {name}`", VERBS[name].ABOUT, *([table(own)] if own else [])]
        first = [option.name.split("`")[1].split()[0] for option in others if option.group == GENERAL]
        groups = [f"[{group}](#{group})" for group in dict.fromkeys(o.group for o in others) if group != GENERAL]
        also = f"\nIt also takes the options of {', '.join(groups)}." if groups else ""
        parts.append(f"Of the [general](#{GENERAL}) options it takes {coded(first)}.{also}")
    return "\n\n".join(parts)


TABLES: Tables = {"shared_options": of_several, "own_options": of_each}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    check = arguments.parse_args().check
    old = PAGE.read_text()
    new = render(old, TABLES)
    if check and old != new:
        raise SystemExit(f"{PAGE.name} is not what the command line says: run python -m tools.cli_page")
    if not check:
        PAGE.write_text(new)


if __name__ == "__main__":
    main()
