"""Tokenising whole data sets: plan, shards, ledger; reading them; exporters. See docs/datasets.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisebook.datasets.pipeline import TokenizeBatch
    from noisebook.datasets.reader import TokenDataset, TokenStream

_WHERE = {"TokenDataset": "reader", "TokenStream": "reader", "TokenizeBatch": "pipeline"}


def __getattr__(name: str) -> Any:  # workers that decode pictures must not wait for torch
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"noisebook.datasets.{_WHERE[name]}"), name)


__all__ = ["TokenDataset", "TokenStream", "TokenizeBatch"]
