"""Tokens in a pipeline of WebDataset: pictures of tars -> batches of tokens and labels, in the workers of its loader.

    python examples/webdataset_pipeline.py 'TARS/{000000..000009}.tar'

Needs the package `webdataset`. A sample has a picture (jpg, png) and a label (cls). Pictures of one batch have one size.
"""

import sys

import webdataset as wds

from noisebook.torch import Transform


def main(tars: str, workers: int = 1, batch_size: int = 16, preset: str = "photo-low", **options) -> list:
    """`options` are those of noisebook.load. Returns the batches: (tokens int64 [B, L], labels [B])."""
    transform = Transform(preset, **options)  # takes the bytes of a picture; each worker makes its own codec
    samples = (
        wds.WebDataset(tars, shardshuffle=False, empty_check=False)
        .to_tuple("jpg;jpeg;png", "cls")
        .map_tuple(transform, int)
        .batched(batch_size)
    )
    batches = list(wds.WebLoader(samples, batch_size=None, num_workers=workers))
    for tokens, labels in batches[:1]:
        print(f"{len(batches)} batches; the first has tokens {list(tokens.shape)}, labels {labels.tolist()}")
    return batches


if __name__ == "__main__":
    main(*sys.argv[1:])
