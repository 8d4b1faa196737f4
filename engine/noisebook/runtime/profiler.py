"""Names of the stages of an encode or decode for NVIDIA's profilers: ranges of the package `nvtx` where it is installed."""

import contextlib
import importlib
from contextlib import AbstractContextManager

_nothing = contextlib.nullcontext()
try:
    _annotate = importlib.import_module("nvtx").annotate
except ImportError:
    _annotate = None


def stage(name: str) -> AbstractContextManager:
    """A range of that name in the domain `noisebook` around a `with` block; nothing at all without `nvtx`.

    A range is what the host does: a stage inside a captured graph shows when it is captured, not when it is replayed."""
    return _nothing if _annotate is None else _annotate(name, domain="noisebook")
