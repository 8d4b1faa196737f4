"""Devices by name, and torch's defaults."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from noisebook.errors import SpecError, first_line, printable

if TYPE_CHECKING:
    import torch

SEARCHED = ("cpu", "cuda", "meta")  # kinds of device where a codebook's back ends work (`meta` stands for CUDA in tests)


def device_named(name: str) -> "torch.device":
    """Raises SpecError for what is no name of a device."""
    import torch

    try:
        return torch.device(name)
    except Exception as error:
        raise SpecError(f"device {printable(repr(name), 60)} cannot be used: {first_line(error)}") from error


def usable_device(name: str) -> str:
    """The name, if a network can run there and the search there or on the host. Raises SpecError where that is not so."""
    import torch

    device = device_named(name)
    try:
        torch.empty(0, device=device)
    except Exception as error:  # a device of another vendor's asks for its own package
        raise SpecError(f"device {printable(repr(name), 60)} cannot be used: {first_line(error)}") from error
    refuse_unreachable(device)
    return name


def working_device(device: "torch.device") -> "torch.device":
    """Where a codec works whose network is on `device`: there, or on the host where no search is written for it."""
    import torch

    return device if device.type in SEARCHED else torch.device("cpu")


@cache
def refuse_unreachable(device: "torch.device") -> None:
    """Raises SpecError for a device on which nothing searches codebooks, and from which nothing comes to the host either."""
    import torch

    if device.type in ("cpu", "cuda"):
        return
    try:
        back = torch.arange(3, dtype=torch.float32).to(device).add(1).cpu().tolist()
        reason = "" if back == [1, 2, 3] else f"1, 2, 3 came back as {back}"
    except Exception as error:
        reason = first_line(error)
    if reason:
        raise SpecError(
            f"device {printable(repr(str(device)), 60)} cannot be used: codebooks are searched on cpu and cuda only, and "
            f"what its network says cannot be copied to the host ({reason}): give --device cpu"
        )


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
