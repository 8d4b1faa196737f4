"""Devices by name, and torch's defaults."""

from collections.abc import Iterator, Sequence
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


def named_devices(device: str | Sequence[str]) -> list[str]:
    """`cuda:0,cuda:1`, or a list, as a list of names. Raises SpecError for an empty name, and for several devices that are
    not of one kind, whose tokens would differ, or of which one has no number where its kind has numbers."""
    names = [name.strip() for name in (device.split(",") if isinstance(device, str) else device)]
    if not names or not all(names):
        raise SpecError("a device has an empty name: write cuda:0,cuda:1")
    if len(names) == 1:
        return names
    if len(kinds := sorted({name.partition(":")[0] for name in names})) > 1:
        raise SpecError(f"devices of one kind make a data set, not {printable(' and '.join(kinds), 60)}: tokens may differ")
    if "cuda" in names:
        raise SpecError("which GPUs? Write cuda:0,cuda:1, or cuda for all of them")
    return names


def every_gpu(names: Sequence[str]) -> list[str]:
    """The same, but `cuda` is every GPU that this process sees, if it sees several. Raises SpecError for a device that is
    not there. It begins no work on a GPU: that takes memory of it until the process ends."""
    import torch

    count = torch.cuda.device_count()
    if list(names) == ["cuda"] and count > 1:
        return [f"cuda:{number}" for number in range(count)]
    for name in names if len(names) > 1 else ():
        if not name.startswith("cuda:"):
            usable_device(name)
        elif name[5:] not in map(str, range(count)):
            raise SpecError(f"device {printable(repr(name), 60)} cannot be used: there are {count} GPUs, counted from 0")
    return list(names)


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
