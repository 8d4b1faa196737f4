"""Tokens in `datasets.map` of Hugging Face: a folder of pictures, whose subfolders are labels -> a data set with tokens.

    python examples/hugging_face_map.py FOLDER OUTPUT

Needs the package `datasets`. `map` keeps what it has made in its own cache, and with num_proc works in several processes.
"""

import sys

import datasets

from noisebook.datasets import TokenizeBatch


def main(folder: str, output: str, preset: str = "photo-low", num_proc: int | None = None, **options):
    """`options` are those of noisebook.load. Returns the data set with `tokens` in place of `image`."""
    pictures = datasets.load_dataset("imagefolder", data_dir=folder, split="train")
    work = TokenizeBatch(preset, **options)
    made = pictures.map(work, batched=True, batch_size=32, remove_columns="image", num_proc=num_proc)
    made.save_to_disk(output)

    row = datasets.load_from_disk(output).with_format("torch")[0]
    print(f"{len(made)} rows of {', '.join(made.column_names)}; the first has {len(row['tokens'])} tokens")
    return made


if __name__ == "__main__":
    main(*sys.argv[1:])
