"""Values that a stranger would put into a field, and how they get into a tree of JSON."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator

INTEGERS = (
    *(0, -1, 1, 2, 3, 7, 16, 255, 256, 1000, 65535, 65536, 65537),
    *(1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 33, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**30),
)
MILD = (0, 1, 2, 3, 8, 255, 4096, 65535, 1 << 30, (1 << 31) - 1)
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-308, 1e308, 3.0000000001, float("inf"), float("-inf"), float("nan"))


@dataclass(frozen=True)
class Traps:
    """What must never be opened, contacted or run: a file, a stub server on loopback, and a command that leaves a file."""

    file: Path
    port: int
    ran: Path

    def names(self) -> list[str]:
        """Names that lead to the traps, or into what a name may do to a file system, a terminal or a URL parser."""
        place, server = str(self.file), f"http://127.0.0.1:{self.port}"
        code = f'{{"templates": {{"a": "{{{{ cycler.__init__.__globals__.os.system(\'touch {self.ran}\') }}}}"}}}}'
        return [
            place,
            f"file://{place}",
            f"{server}/x.png",
            f"{server}/x.tar",
            f"ftp://127.0.0.1:{self.port}/x.png",
            f"zip://x.png::{place}",
            f"zip://x.png::{server}/x.zip",
            f"reference://a.png::data:application/json,{code}",
            f"simplecache::{server}/x.png",
            f"s3://127.0.0.1:{self.port}/x",
            "hf://owner/name/x.png",
            "github://owner:name@main/x.png",
            "owner/name",
            "noisebook/none",
            f"../../../../../../../..{place}",
            "../" * 40 + "etc/passwd",
            "/etc/passwd",
            "/dev/zero",
            "/dev/stdin",
            "~root/x",
            "$HOME/x",
            "",
            ".",
            "..",
            "a//b",
            "a/./b",
            "/",
            "a\0b",
            "CON",
            "x" * 256,
            "é" * 128,
            "x" * 100_000,
            "\x1b[31mred\x1b[2J\x07",
            "a\nb\r\nnoisebook: ok",
            "\u202egnp.exe",
            "\u2028\x85\x9b2J",
            "\udcff\ud800",
            "-rf",
            "--backbone",
            "`touch x`; $(touch x)",
            "%s%n{0}{0.__class__}",
            "photo",
            "gaussian-prior",
            "cifar10-flow",
            "a::b.png",
            "a#b?c=d.png",
        ]


def string(rng: Rng, traps: Traps) -> str:
    names = traps.names()
    return names[rng.integers(len(names))]


def deep(rng: Rng) -> Any:
    """Lists in lists, a few or far more than any parser's stack."""
    value: Any = 0
    for _ in range(int(rng.choice([3, 200]))):
        value = [value]
    return value


def nasty(rng: Rng, traps: Traps, like: Any = None, mild: bool = False) -> Any:
    """A value of a field: most often of the type of `like`, else of another. `mild`: of its type, and no negative number, so
    that what reads it first may take it."""
    kind = 0.0 if mild else rng.random()
    if mild and isinstance(like, int | float) and not isinstance(like, bool):
        return type(like)(MILD[rng.integers(len(MILD))])
    if like is not None and kind < 0.7:
        if isinstance(like, bool):
            return not like
        if isinstance(like, int):
            return INTEGERS[rng.integers(len(INTEGERS))]
        if isinstance(like, float):
            return FLOATS[rng.integers(len(FLOATS))]
        if isinstance(like, str):
            return string(rng, traps)
        if isinstance(like, list) and like:
            return [like[:1], like[:-1], like * 2, like[::-1], like * 50][rng.integers(5)]
    others: list[Any] = [None, True, [], {}, [[]], {"": None}, string(rng, traps), 1.5, deep(rng), [None] * 1000]
    others += [INTEGERS[rng.integers(len(INTEGERS))], FLOATS[rng.integers(len(FLOATS))]]
    return others[rng.integers(len(others))]


Path_ = tuple[Any, ...]


def places(tree: Any, at: Path_ = ()) -> list[Path_]:
    """The path of every value in a tree of dicts and lists; of a long list only some."""
    out = [at] if at else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            out += places(value, (*at, key))
    elif isinstance(tree, list):
        for i in sorted({0, 1, len(tree) // 2, len(tree) - 1} & set(range(len(tree)))):
            out += places(tree[i], (*at, i))
    return out


def mutated(tree: Any, rng: Rng, traps: Traps, count: int, mild: bool = False) -> Any:
    """A copy in which `count` values are nasty, or, unless `mild`, missing or beside one that no parser knows."""
    tree = copy.deepcopy(tree)
    for _ in range(count):
        found = places(tree)
        if not found:
            return tree
        *above, last = found[rng.integers(len(found))]
        parent = tree
        for key in above:
            parent = parent[key]
        how = 1.0 if mild else rng.random()
        if how < 0.04:
            del parent[last]
        elif how < 0.08 and isinstance(parent, dict):
            parent[string(rng, traps)] = nasty(rng, traps)
        else:
            parent[last] = nasty(rng, traps, parent[last], mild)
    return tree


def some(rng: Rng, *weights: float) -> int:
    """A small number, i with a weight of weights[i]."""
    return int(rng.choice(len(weights), p=np.array(weights) / sum(weights)))
