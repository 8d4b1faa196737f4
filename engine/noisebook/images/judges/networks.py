"""Files of networks that metrics need. They are the user's own, named by file and SHA-256 wherever a value is shown.

A TorchScript file is a program, and it is run: every path here is one that the user typed, never one that a file names.
"""

import hashlib
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from noisebook.errors import BackboneError, first_line, printable

MOST_NAMES = 4096  # of a zip that are looked at


@dataclass(frozen=True)
class NetworkFile:
    """A file that was given: its name without folders, and the SHA-256 of its content, in hex."""

    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{printable(self.file)} sha256:{self.sha256}"


def named(path: Path) -> NetworkFile:
    """What a result says of a file. Raises BackboneError where it cannot be read."""
    try:
        with open(path, "rb") as f:
            return NetworkFile(path.name, hashlib.file_digest(f, "sha256").hexdigest())
    except OSError as error:
        raise BackboneError(f"{printable(path)}: cannot be read: {error.strerror or first_line(error)}") from error


def is_program(path: Path) -> bool:
    """Whether a file is TorchScript, by the names in its zip; nothing in it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:MOST_NAMES]
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") for name in names)


def read_program(path: Path, device: str = "cpu") -> nn.Module:
    """A TorchScript network, in evaluation mode. Raises BackboneError for another file."""
    if not is_program(path):
        raise BackboneError(f"{printable(path)}: no TorchScript program: torch.jit.script(net).save(FILE) writes one")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # torch.jit has types of its own
        raise BackboneError(f"{printable(path)}: no TorchScript program ({first_line(error)})") from error


def read_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of state dicts (.safetensors, or what `torch.save` wrote), all files together; read as inert data. Raises
    BackboneError for other files, and where two files have a tensor of one name."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = _tensors(path)
        if both := tensors.keys() & found.keys():
            raise BackboneError(f"{printable(path)}: its {printable(min(both), 60)} is in another file of the network, too")
        tensors |= found
    return tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of torch's about other kinds of pickle
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler and the readers of zip files raise is not listed anywhere
        raise BackboneError(f"{printable(path)}: neither a TorchScript program nor a state dict of tensors alone") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise BackboneError(f"{printable(path)}: no state dict: names and tensors are expected")
    return found
