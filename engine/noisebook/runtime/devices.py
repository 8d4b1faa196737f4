"""Devices by name, and torch's defaults."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from noisebook.errors import SpecError, first_line, printable


def usable_device(name: str) -> str:
    """The name, if torch can put a tensor there. Raises SpecError where it cannot."""
    import torch

    try:
        torch.empty(0, device=torch.device(name))
    except Exception as error:  # a device of another vendor's asks for its own package
        raise SpecError(f"device {printable(repr(name), 60)} cannot be used: {first_line(error)}") from error
    return name


@contextmanager
def own_defaults() -> Iterator[None]:
    """Inside, tensors that name no dtype or device are float32 and on the CPU, as torch begins, whatever the caller of
    noisebook has set; the caller's defaults are back at the end. A decorator, too."""
    import torch

    dtype = torch.get_default_dtype()
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
