"""CIFAR-10's test images as a user would take them: to Parquet, tokenised, verified, exported, read back, decoded.

    python -m bench.reliability.whole_dataset [--count 5000]
    python -m bench.reliability.whole_dataset --report       # only write the page; --check: is it up to date?

Every step is a command of docs/datasets.md or a reader that people use: numpy, WebDataset, Hugging Face `datasets`,
Megatron's IndexedDataset, `TokenDataset`. Each must give the same tokens, and those that were exported must decode to what
`detokenize` writes. Needs `pip install datasets webdataset`, and for Megatron's reader `megatron-core`; one that is missing
is said to be. Writes bench/results/whole_dataset.json and a table of docs/datasets.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import noisebook
from bench.lib import page
from bench.lib.images import write_parquet
from bench.lib.record import DATA, ROOT, write
from noisebook.datasets import TokenDataset
from noisebook.runtime.pixels import to_uint8

NAME, PAGE = "whole_dataset", ROOT / "docs/datasets.md"
CODEC = ["--backbone", "cifar10-flow", "--bpp", ".5", "--max-nfe", "8", "--dtype", "float32"]
FORMATS = ("npy", "webdataset", "megatron")
Rows = Iterator[tuple[str, Any]]


# ---- readers: a folder -> (key, tokens) of every image -----------------------------------------------------------------
def of_noisebook(folder: Path) -> Rows:
    for row in TokenDataset(str(folder)):
        yield row["key"], row["tokens"]


def of_hugging_face(folder: Path) -> Rows:
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        data = load_dataset("parquet", data_files=str(folder / "shards/*.parquet"), cache_dir=cache, split="train")
        yield from zip(data["key"], data["tokens"], strict=True)


def of_numpy(folder: Path) -> Rows:
    return zip(_keys(folder), np.load(folder / "tokens.npy", mmap_mode="r"), strict=True)


def of_webdataset(folder: Path) -> Rows:
    import webdataset

    tars = [path.as_posix() for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        yield sample["json"]["key"], sample["tokens.npy"]


def of_megatron(folder: Path) -> Rows:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(str(folder / "tokens"))
    copies = (np.array(data[i]) for i in range(len(data)))  # its memory goes with it
    return zip(_keys(folder), copies, strict=True)


def _keys(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


READERS: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "`TokenDataset`": ("", of_noisebook),
    "Hugging Face `datasets`, the shards": ("", of_hugging_face),
    "`numpy.load`, `--format npy`": ("npy", of_numpy),
    "WebDataset, `--format webdataset`": ("webdataset", of_webdataset),
    "Megatron's `IndexedDataset`, `--format megatron`": ("megatron", of_megatron),
}


# ---- the run ------------------------------------------------------------------------------------------------------------
def command(*words: str | Path) -> float:
    """Runs `noisebook ...`; seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "noisebook", *map(str, words)], check=True)
    return round(time.perf_counter() - begin, 1)


def run(folder: Path, count: int) -> dict[str, Any]:
    archive = np.load(DATA / "cifar10_test5k.npz")
    images = archive["images"][:count]
    write_parquet(folder / "test.parquet", images, archive["labels"][:count])
    tokens, back = folder / "tokens", folder / "back"
    seconds = {"tokenize": command("tokenize", folder / "test.parquet", "-o", tokens, *CODEC, "--batch-size", "64")}
    seconds["verify"] = command("verify", tokens)
    for form in FORMATS:
        seconds[f"export {form}"] = command("export", tokens, "-o", folder / form, "--format", form)
    seconds["detokenize"] = command("detokenize", tokens, "-o", back, "--batch-size", "64")

    wanted = dict(of_noisebook(tokens))
    order = {key: i for i, key in enumerate(wanted)}
    readers = []
    for name, (form, read) in READERS.items():
        try:
            found = list(read(folder / form if form else tokens))
        except ImportError as error:
            readers.append({"reader": name, "missing": str(error.name)})
            continue
        same = sum(key in wanted and np.array_equal(np.asarray(some), wanted[key]) for key, some in found)
        readers.append({"reader": name, "images": len(found), "same": same})

    codec = noisebook.load(TokenDataset(str(tokens)).spec, dtype="float32")
    pairs = list(of_numpy(folder / "npy"))
    equal, errors = 0, []
    for first in range(0, len(pairs), 64):
        some = pairs[first : first + 64]
        shown = to_uint8(codec.decode(torch.from_numpy(np.stack([t for _, t in some]).astype(np.int64)), (32, 32)))
        for (key, _), picture in zip(some, shown.permute(0, 2, 3, 1).numpy(), strict=True):
            equal += np.array_equal(np.asarray(Image.open(back / f"{key}.png")), picture)
            errors.append(np.square(picture.astype(np.float64) - images[order[key]]).mean())
    psnr = 10 * np.log10(255**2 / np.array(errors))
    return {
        "images": len(images),
        "codec": " ".join(CODEC),
        "tokens_an_image": len(pairs[0][1]),
        "readers": readers,
        "seconds": seconds,
        "decoded_as_detokenize": equal,
        "psnr": round(float(psnr.mean()), 2),
        "bytes": {
            "parquet shards": sum(p.stat().st_size for p in (tokens / "shards").iterdir()),
            "npy": (folder / "npy/tokens.npy").stat().st_size,
        },
    }


def table() -> str:
    result = page.load(NAME)
    codec = result["codec"].replace("--max-calls", "--max-nfe")  # what the option is called since that run
    rows = [
        [r["reader"], f"{r['missing']} was not installed" if "missing" in r else f"{r['same']:,} of {r['images']:,}"]
        for r in result["readers"]
    ]
    text = page.table(["read with", "images with the same tokens"], rows)
    return (
        f"{text}\n\n{result['images']:,} test images of CIFAR-10 in a Parquet file of Hugging Face's layout, "
        f"`{codec}`, {result['tokens_an_image']} tokens per image. Decoded from the npy export: "
        f"{result['decoded_as_detokenize']:,} pictures are those of `noisebook detokenize` to the last bit, mean PSNR "
        f"{result['psnr']:.2f} dB. {page.source(result, NAME)}"
    )


TABLES: page.Tables = {"readers": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    with tempfile.TemporaryDirectory() as folder:
        write(NAME, run(Path(folder), args.count), None)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
