"""A WebDataset to tokens by actors of Ray, one for each GPU or for each two cores; again after a kill, it goes on.

    python examples/webdataset_on_ray.py 'TARS/*.tar' TOKENS

Needs the extra `ray`. TOKENS then has Parquet shards and a ledger of every picture: docs/datasets.md, docs/scale.md.
"""

import sys

from noisebook.datasets import CodecRecipe, TokenDataset, tokenize


def main(tars: str, output: str, resize: int = 256, codec: CodecRecipe | str = "photo-low", **options) -> TokenDataset:
    """On GPUs give CodecRecipe("photo-low", device="cuda"). `options` are those of tokenize: actors, shard_size, ..."""
    how = {"codec": codec, "resize": resize, "resume": True, **options}
    counts = tokenize(tars, output, engine="ray", input_format="webdataset", **how)
    print(f"{counts['n_ok']} of {counts['n_in']} pictures, {counts['shards']} shards; failed: {counts['failed_by_code']}")

    data = TokenDataset(output)
    row = data[0]
    print(f"{row['key']}: {len(row['tokens'])} tokens, and the columns {', '.join(row)}")
    return data


if __name__ == "__main__":
    main(*sys.argv[1:])
