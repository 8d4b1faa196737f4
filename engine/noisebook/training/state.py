"""What a run resumes from: `state.pt`, and where that would be large, parts of it beside it, none above 16 MiB.

A part is written under a new name, `state-ITERATION-NUMBER.pt`; then `state.pt` is replaced, which says how many
parts of which iteration there are; then the parts of the save before are removed. So a run that is killed while it saves has
the state before. In parts, what the optimizer remembers and the distance from the weights to their moving average are
bfloat16, which makes the state of a network 10 bytes a weight in place of 16.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisebook.runtime.atomic import replacing

LARGEST = 15 << 20  # bytes of a state in one file, and of the tensors in a part: 16 MiB with all that belongs to them
NAMES = ("model", "average", "optimizer", "objective")  # of what may go into parts


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes a run's state; `state["iteration"]` is not that of an earlier save. Raises OSError or RuntimeError (of torch)
    where it cannot be written: what was there before is whole."""
    before, parts = list(folder.glob("state-*.pt")), []
    if sum(_bytes(state.get(name)) for name in NAMES) > LARGEST:
        tensors: list[Tensor] = []
        state = dict(state)
        state["average"] = {name: value - state["model"][name] for name, value in state["average"].items()}
        for name in NAMES:
            state[name] = _without(state.get(name), tensors, name in ("average", "optimizer"))
        parts = _parts(tensors)
        state["parts"] = len(parts)
    paths = [_path(folder, state["iteration"], number) for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        with replacing(path) as temporary:
            torch.save(part, temporary)
    with replacing(folder / "state.pt") as temporary:
        torch.save(state, temporary)
    for path in before:
        if path not in paths:
            path.unlink(missing_ok=True)


def read_state(path: Path, device: str) -> dict[str, Any]:
    """The state in a `state.pt`, and in the parts beside it. Raises whatever torch does for a damaged file."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    if "parts" in state:
        names = [_path(path.parent, int(state["iteration"]), number) for number in range(int(state["parts"]))]
        tensors = [tensor for name in names for tensor in torch.load(name, weights_only=True, map_location=device)]
        state |= {name: _with(state[name], tensors) for name in NAMES}
        state["average"] = {name: state["model"][name] + value.float() for name, value in state["average"].items()}
    return state


def _path(folder: Path, iteration: int, number: int) -> Path:
    return folder / f"state-{iteration}-{number}.pt"


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes, values))


def _without(value: Any, tensors: list[Tensor], half: bool) -> Any:
    """The value with the number of each tensor in its place, which goes to `tensors`; single numbers stay."""
    if isinstance(value, Tensor) and value.ndim:
        tensors.append(value.bfloat16() if half and value.is_floating_point() else value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        return {key: _without(inner, tensors, half) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(inner, tensors, half) for inner in value]
    return value


def _with(value: Any, tensors: list[Tensor]) -> Any:
    """The inverse of `_without`."""
    if isinstance(value, dict):
        return tensors[value["tensor"]] if value.keys() == {"tensor"} else {k: _with(v, tensors) for k, v in value.items()}
    return [_with(inner, tensors) for inner in value] if isinstance(value, list) else value


def _parts(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors in their order, cut so that each part has at most LARGEST bytes, or one tensor."""
    parts: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if parts[-1] and _bytes(parts[-1]) + tensor.nbytes > LARGEST:
            parts.append([])
        parts[-1].append(tensor)
    return parts
