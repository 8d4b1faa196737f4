"""Tokenising whole data sets, and what reads them: sources, plan, shards, ledger, exporters. See docs/datasets.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisebook.datasets.collating import collate
    from noisebook.datasets.job import Rank
    from noisebook.datasets.pipeline import TokenizeBatch
    from noisebook.datasets.reader import TokenDataset, TokenStream
    from noisebook.datasets.recipe import CodecRecipe
    from noisebook.datasets.run import tokenize


def __getattr__(name: str) -> Any:  # processes that decode pictures import this package, and must not wait for torch
    if name in ("TokenDataset", "TokenStream"):
        from noisebook.datasets import reader as module
    elif name == "collate":
        from noisebook.datasets import collating as module
    elif name == "TokenizeBatch":
        from noisebook.datasets import pipeline as module
    elif name == "CodecRecipe":
        from noisebook.datasets import recipe as module
    elif name == "Rank":
        from noisebook.datasets import job as module
    elif name == "tokenize":
        from noisebook.datasets import run as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


__all__ = ["CodecRecipe", "Rank", "TokenDataset", "TokenStream", "TokenizeBatch", "collate", "tokenize"]
