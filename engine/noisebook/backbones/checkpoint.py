"""The one-file checkpoint of noisebook's own backbones: safetensors whose metadata says the kind and the config."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from noisebook.backbones.foreign import what_is
from noisebook.errors import BackboneError, printable
from noisebook.runtime import strict_json
from noisebook.runtime.atomic import replacing

# What builders and the libraries below them raise where a config and tensors do not fit each other.
MISFIT = (
    TypeError,
    ValueError,
    RuntimeError,  # also RecursionError, NotImplementedError
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    OSError,
)


def write_checkpoint(
    path: str | Path, kind: str, config: dict[str, Any], tensors: dict[str, Tensor], replace: bool = True
) -> None:
    """Writes `tensors` with `kind` and `config` (JSON values) as metadata, whole or not at all.

    Raises BackboneError where the file cannot be written, NoisebookError where something is there that is no regular
    file, or `replace` is not given."""
    path, metadata = Path(path), {"noisebook": json.dumps({"kind": kind, "config": config}, sort_keys=True)}
    try:
        with replacing(path, replace) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{path}: cannot be written: {error}") from error


def read_checkpoint(path: str | Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(kind, config, tensors) of a file that `write_checkpoint` wrote. Raises BackboneError on any other file."""
    try:
        with safe_open(path, "pt") as f:
            header = strict_json.loads((f.metadata() or {})["noisebook"])
            kind, config = header["kind"], header["config"]
            if not (isinstance(kind, str) and isinstance(config, dict)):
                raise TypeError("kind and config")
            return kind, config, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise BackboneError(
            f"{printable(path)}: not a noisebook checkpoint ({type(error).__name__})"
            + (what_is(Path(path)) or "; see docs/backbones.md")
        ) from error


def check_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a config has numbers that none of the tensors can justify, so that no network is begun for
    them: sizes beyond 2^16 and every dimension, more layers or blocks than tensors, too many or too deep values."""
    largest = max([1 << 16, *(n for t in tensors.values() for n in t.shape)])
    _check_value(config, "config", largest, len(tensors), 0)


def _check_value(value: Any, key: str, largest: int, count: int, depth: int) -> None:
    if isinstance(value, (Mapping, list, tuple)):
        if depth > 16 or len(value) > 1024:
            raise ValueError(f"{printable(key, 60)} has too many values, or too deep ones")
        for name, entry in value.items() if isinstance(value, Mapping) else ((key, entry) for entry in value):
            _check_value(entry, str(name), largest, count, depth + 1)
    elif isinstance(value, int) and abs(value) > (count if "blocks" in key or "layers" in key else largest):
        raise ValueError(f"{printable(key, 60)} is {printable(value, 20)}, which no tensor has")


def check_size(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the network that `build` makes is far larger than its tensors, before it takes memory."""
    with torch.device("meta"):
        check_parameters(build(), tensors)


def check_parameters(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The same of a network that is on the `meta` device."""
    wanted, have = (sum(t.numel() for t in given) for given in (network.parameters(), tensors.values()))
    if wanted > 2 * have + (1 << 20):
        raise ValueError(f"the config makes {wanted:,} parameters, and the weights are {have:,}")


def one_line(error: object) -> str:
    """What an error of another library says about a file, as one line of at most 200 characters."""
    return printable(" ".join(str(error).split())[:200])
