"""A stand-in for a device of another vendor: tensors that say they are on `mps`, mix with none of the host's, refuse
`.numpy()` and know no float64. Their values lie on the CPU. What is copied between the two is counted. No gradients."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("mps:0")
VALUES = {getattr(Tensor, name).__get__ for name in ("data", "T", "mT", "H", "real", "imag")}  # properties that are tensors
HIDDEN = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "equal")  # would copy without a word


class There(Tensor):
    """A tensor on the device, with its values in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:  # of what makes a Parameter
            return There(args[0].held)
        raise AssertionError(f"{func}: the device works only inside `other_device`")


class Work(TorchFunctionMode):
    """Does what is asked of the device, and the copies."""

    def __init__(self, copies: list[tuple[str, int]]):
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func, types, args=(), kwargs: Any = None):
        kwargs = dict(kwargs or {})
        name = func.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = any(isinstance(t, There) for t in given)
        if func is torch._has_compatible_shallow_copy_type:  # a module asks whether a parameter can stay the object it is
            return False
        if name == "__get__" and func not in VALUES:  # shape, dtype, device
            return func(*args, **kwargs)
        if func is Tensor.to or func is Tensor.cpu:
            return self._copied(func, *args, **kwargs)
        if there and name in ("numpy", "__array__"):
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        assert not there or name not in HIDDEN, f"{name} hides a copy"
        assert not there or all(isinstance(t, There) or not t.ndim for t in given), f"{name} of tensors of two devices"
        device = kwargs.get("device")
        if device is not None:
            there, kwargs["device"] = torch.device(device).type == DEVICE.type, "cpu"
        held = tree_map_only(There, lambda t: t.held, (args, kwargs))
        out = func(*held[0], **held[1])
        if there and given and out is held[0][0]:  # in place
            return args[0]
        return tree_map_only(Tensor, There, out) if there else out

    def _copied(self, func, tensor: Tensor, *how: Any, **named: Any) -> Tensor:
        device, dtype = (torch.device("cpu"), None) if func is Tensor.cpu else _asked(*how, **named)
        held = tensor.held if isinstance(tensor, There) else tensor
        held, to_there = held.to(dtype or held.dtype), (device or tensor.device).type == DEVICE.type
        if to_there != isinstance(tensor, There):
            self.copies.append(("to the device" if to_there else "to the host", tensor.numel()))
            held = held.clone()
        return There(held) if to_there else held


def _asked(*how: Any, **named: Any) -> tuple[Any, Any]:
    """(device, dtype) that `.to` is called with, or None."""
    if how and isinstance(how[0], Tensor):
        return how[0].device, how[0].dtype
    return torch._C._nn._parse_to(*how, **named)[:2]


@contextlib.contextmanager
def other_device() -> Iterator[list[tuple[str, int]]]:
    """Inside, there is a device `mps`; gives the copies that are made, as (direction, numbers)."""
    copies: list[tuple[str, int]] = []
    with torch.no_grad(), Work(copies):
        yield copies
