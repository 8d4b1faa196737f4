"""What the benches of peers and of DiffC have in common: pictures, a result file that grows by rows, and options.

A row is a dataclass with a `key`. One that cannot be measured stays in the file as a row with an `error`, that says why.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.lib import page
from bench.lib.comparison import CIFAR, backbone_of, cifar, curve_of, measured
from bench.lib.images import centre_crops
from bench.lib.record import DATA, RESULTS, provenance, save
from bench.lib.rivals import Place

PHOTOS = "photographs, 256 x 256"
BACKBONES = {CIFAR: "cifar10-edm", PHOTOS: "photo"}
Figures = dict[str, Any]


def pictures(data: str, args: argparse.Namespace) -> Tensor:
    """uint8 [B, C, H, W] on the device, as many as the options say."""
    found = cifar(args.images)[1][0] if data == CIFAR else centre_crops(DATA / "photos256.npz", args.pictures)
    return found.to(args.device)


def place_of(backbone: str, images: Tensor) -> Place:
    return Place(backbone_of(backbone, str(images.device)), curve_of(backbone), *images.shape[2:])


class RowFile:
    """The result file of the options, with what was measured before; `about` are facts of all rows."""

    def __init__(self, args: argparse.Namespace, **about: Any):
        self.path, self.mine = args.out, provenance(0, args.device)
        before = json.loads(self.path.read_text()) if self.path.exists() else {"rows": {}}
        commands = sorted({self.mine["command"], *before.get("commands", [])})
        self.rows: dict[str, Figures] = before["rows"]
        self.result = {**self.mine, "commands": commands, **about, "rows": self.rows}

    def has(self, key: str) -> bool:
        """Whether a row has figures."""
        return measured(self.rows.get(key))

    def keep(self, key: str, found: Figures) -> None:
        self.rows[key] = {**found, "device": self.mine["device"], "date": self.mine["date"]}
        save(self.path, self.result)


def attempted(row: Any, measure: Callable[[], Figures]) -> Figures:
    """What `measure` finds; where it raises, a row that says why it has no figures: the others are worth having."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RuntimeWarning)  # of atoms too few for a good picture
        try:
            return measure()
        except Exception as error:
            return {**asdict(row), "error": f"{type(error).__name__}: {error}"[:300]}


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Those of both; `name` is that of the result file."""
    add = parser.add_argument
    add("--device", default="cpu")
    add("--images", type=int, default=64, help="of CIFAR-10")
    add("--pictures", type=int, default=8, help="centre crops of photographs")
    add("--only", action="append", help="only this backbone (repeatable)")
    add("--minutes", type=float, default=math.inf, help="start no row after this many minutes")
    add("--out", type=Path, default=RESULTS / f"{name}.json", help="result file")
    page.add_options(parser)


def excluded(*asked: tuple[list | None, Any]) -> bool:
    """Whether an option, of which None means all, leaves a row out: (its values, the row's) each."""
    return any(wanted and has not in wanted for wanted, has in asked)
