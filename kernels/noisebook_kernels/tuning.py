"""Launch settings (tile sizes, warps) from a committed table, so that a first call neither searches nor stalls.

`tuned.json` holds {compute capability: {kernel: {bucket: settings}}}; a bucket is the problem's sizes rounded up to powers
of two, "P12 B64". `python -m tools.tune` measures candidates on a GPU and writes it. A size that is not in the table takes
the nearest one that is; a device that is not takes the kernel's defaults. Results do not depend on the settings.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("tuned.json")
Table = dict[str, dict[str, dict[str, dict[str, int]]]]


def read_table() -> Table:
    """What `tuned.json` holds; nothing where it is not there."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


_table = functools.cache(read_table)


@functools.cache
def _capability(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{major}{minor}"


def bucket(sizes: Mapping[str, int]) -> str:
    """Sizes by name -> the key of the table: each rounded up to a power of two, as its exponent."""
    return " ".join(f"{name}{(max(1, n) - 1).bit_length()}" for name, n in sizes.items())


def _distance(key: str, wanted: str) -> tuple[int, str]:
    pairs = zip(key.split(), wanted.split(), strict=True)
    return sum(abs(int(a.lstrip("PBMK")) - int(b.lstrip("PBMK"))) for a, b in pairs), key


def settings(kernel: str, device: torch.device, defaults: Mapping[str, int], **sizes: int) -> dict[str, int]:
    """The settings of `kernel` for problem sizes (P, B, M or K = ...): the table's over `defaults`."""
    if device.type != "cuda":
        return dict(defaults)
    rows = _table().get(_capability(device.index or 0), {}).get(kernel, {})
    if not rows:
        return dict(defaults)
    wanted = bucket(sizes)
    return {**defaults, **rows[min(rows, key=lambda key: _distance(key, wanted))]}
