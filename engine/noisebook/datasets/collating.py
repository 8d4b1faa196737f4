"""Rows of a data set as a batch of torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def collate(rows: Sequence[Mapping[str, Any]], null: Any = None) -> dict[str, Any]:
    """Rows of a `TokenDataset` or `TokenStream` as one batch, column by column; the `collate_fn` of a DataLoader.

    arrays            such as `tokens`: a tensor [B, ...] of their dtype where all have one shape, else a list of tensors
    whole numbers     a tensor int64 [B]
    other numbers     a tensor float64 [B]
    flags             a tensor bool [B]
    all else          a list, with its nulls: texts, bytes, times, lists; numbers among which one is null, or that no tensor
                      holds

    null   what takes the place of a null: -1 makes a tensor of labels of which some are missing
           (`functools.partial(collate, null=-1)`)

    A column that only some rows have is null in the others.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _column([null if row.get(name) is None else row[name] for row in rows]) for name in names}


def _column(values: list[Any]) -> Any:
    if all(isinstance(value, np.ndarray | torch.Tensor) for value in values):
        tensors = [torch.as_tensor(value) for value in values]
        alike = len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1
        return torch.stack(tensors) if alike else tensors
    for kind, dtype in ((bool, torch.bool), (int, torch.int64), (int | float, torch.float64)):
        if all(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for value in values):
            try:
                return torch.tensor(values, dtype=dtype)
            except (OverflowError, ValueError, RuntimeError):  # a number that no int64 holds
                return values
    return values
