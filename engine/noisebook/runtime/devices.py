"""Devices by name."""

from noisebook.errors import SpecError, first_line


def usable_device(name: str) -> str:
    """The name, if torch can put a tensor there. Raises SpecError where it cannot."""
    import torch

    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return name
