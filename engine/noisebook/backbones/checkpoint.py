"""The one-file checkpoint of noisebook's own backbones: safetensors whose metadata says the kind and the config."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from noisebook.errors import BackboneError
from noisebook.runtime.atomic import replacing


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
            header = json.loads((f.metadata() or {})["noisebook"])
            return header["kind"], header["config"], {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise BackboneError(f"{path}: not a noisebook checkpoint ({type(error).__name__}); see docs/backbones.md") from error


def one_line(error: object) -> str:
    """What an error of another library says about a file, as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
