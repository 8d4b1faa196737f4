"""Tokens in a pipeline of Ray Data: a folder of pictures -> Parquet with a column of tokens.

    python examples/ray_data.py PICTURES OUTPUT

Needs the extra `ray`. Each actor makes a codec once and keeps it. On GPUs give num_gpus=1 and device="cuda".
"""

import sys

import ray

from noisebook.datasets import TokenizeBatch


def main(pictures: str, output: str, side: int = 64, actors: int = 1, preset: str = "photo-low", **options):
    """`options` are those of noisebook.load. Returns the data set that was written, as Ray reads it."""
    images = ray.data.read_images(pictures, size=(side, side), mode="RGB", include_paths=True)
    tokens = images.map_batches(
        TokenizeBatch,  # takes the column `image`, gives `tokens`, and leaves the others unchanged
        fn_constructor_kwargs={"preset": preset, **options},
        batch_size=32,
        concurrency=actors,
    )
    tokens.write_parquet(output)
    written = ray.data.read_parquet(output)
    print(f"{written.count()} rows of {', '.join(written.schema().names)}")
    return written


if __name__ == "__main__":
    main(*sys.argv[1:])
