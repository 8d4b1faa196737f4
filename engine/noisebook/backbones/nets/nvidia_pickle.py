"""Reads NVIDIA's EDM checkpoints, pickles that carry their own source code, without running any of it.

Unpickling would execute that code. Here objects become inert records: only the names in `ALLOWED` are known, none of them
runs anything of the file's, and all others are refused.
"""

import io
import math
import mmap
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.checkpoint import one_line
from noisebook.errors import BackboneError


class Record:
    """An object of a pickle: what it calls its class, and its state."""

    def __init__(self, name: str = "", state: Any = None):
        self.name, self.state = name, state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _persistent(meta: Mapping[str, Any]) -> Record:
    """An object that carries its source code, which is dropped."""
    return Record(meta["class_name"], meta["state"])


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of the storage; torch checks that it lies inside."""
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    if math.prod(size) > len(flat):  # a stride of 0 would make much of little
        raise BackboneError(f"a tensor {list(size)} is larger than what is stored of it")
    return flat.as_strided(size, stride, offset)


def _number(dtype: Record, data: bytes) -> float:
    """A numpy scalar."""
    return struct.unpack("<" + {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}[dtype.name], data)[0]


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): dict,
    ("numpy", "dtype"): lambda code, *_: Record(code),
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.nn.modules.container", "ModuleDict"): Record,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
}


class Unpickler(pickle.Unpickler):
    """Knows ALLOWED and nothing else. Raises BackboneError for any other class or function."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise BackboneError(f"it holds a {module_name}.{global_name}, which no EDM checkpoint needs") from None


def read_pickle(path: str | Path) -> Any:
    """What a pickle holds, its objects as Records and its tensors on the CPU; no code of the file's is run.

    Raises BackboneError where it cannot be read, is damaged, or holds something that is not in ALLOWED.
    """
    try:
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for count, (opcode, place, _) in enumerate(_opcodes(data)):
                if "PUT" in opcode.name and (place or 0) > count:  # the memo is a list as long as its largest place
                    raise BackboneError("a place in its memo is too large")
            data.seek(0)
            return Unpickler(data).load()
    except Exception as error:  # a damaged pickle raises what it likes
        raise BackboneError(f"{path}: no EDM checkpoint, or a damaged one ({one_line(error)})") from error


def _opcodes(mapped: Any) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    return pickletools.genops(mapped)  # a mapped file reads like any other, and no read allocates more than its size


def tensors_of(module: Record, prefix: str = "", seen: set[int] | None = None) -> dict[str, Tensor]:
    """The state dict of a pickled torch module. Raises BackboneError where a module is inside itself or in two places."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        raise BackboneError(f"the module at {prefix!r} is somewhere else, too")
    seen.add(id(module))
    tensors = {prefix + k: v for kind in ("_parameters", "_buffers") for k, v in module.state[kind].items() if v is not None}
    for name, child in module.state["_modules"].items():
        if child is not None:
            tensors |= tensors_of(child, f"{prefix}{name}.", seen)
    return tensors


def plain(value: Any) -> Any:
    """A number, string or list of them, as JSON has them. Raises TypeError for anything else."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a setting is a {type(value).__name__}")
