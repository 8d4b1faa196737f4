"""The commands `noisebook tokenize`, `detokenize` and `export`, and `verify` of data sets."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli.options import KNOBS, add_codec_options, add_encoder_options, device, log, network
from noisebook.errors import DatasetError, FormatError, ImageError, SpecError

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec
    from noisebook.datasets.reader import TokenDataset
    from noisebook.datasets.recipe import CodecRecipe

ENGINES = ("process", "ray")


def add_tokenize(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a folder of pictures, WebDataset .tar files, or .parquet "
        "files with image bytes; or folders or patterns (*) of them; local, or of fsspec",
    )
    sub.add_argument("-o", "--output", required=True, metavar="DIR", help="folder or URL of the data set of tokens")
    sub.add_argument("--resume", action="store_true", help="go on with what is there (an empty folder too)")
    sub.add_argument("--input-format", choices=("pictures", "webdataset", "parquet"), help="where there are several")
    sub.add_argument("--image-column", metavar="NAME", help="Parquet: column of the images (default: the first of bytes)")
    sub.add_argument(
        "--resize",
        type=int,
        default=0,
        metavar="SIDE",
        help="scale the shorter side to so many pixels and keep the square in the middle",
    )
    sub.add_argument(
        "--mixed-sizes",
        action="store_true",
        help="take images of any size, in lists that differ in length "
        "(default: only if the first 64 already differ; other sizes fail otherwise)",
    )
    sub.add_argument("--shard-size", type=int, default=1000, help="images of a shard, the unit of work (default: 1000)")
    sub.add_argument("--batch-size", type=int, default=32, help="images coded at once (default: 32)")
    sub.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes that decode pictures; 0: none (default: %(default)s)",
    )
    sub.add_argument("--max-errors", type=int, help="stop when more images have failed (default: never)")
    sub.add_argument(
        "--engine",
        choices=ENGINES,
        default="process",
        help="process: this one, or one of several ranks that "
        "torchrun or Slurm starts; ray: actors of a Ray cluster (default: process)",
    )
    sub.add_argument("--actors", type=int, help="ray: how many (default: one for each GPU, or for each two CPU cores)")
    sub.add_argument("--retries", type=int, default=2, help="ray: of a shard whose actor died (default: 2)")
    sub.add_argument(
        "--device", default="cpu", help="cpu, cuda, ...; cuda under torchrun: that of the local rank (default: cpu)"
    )
    add_codec_options(sub)
    group = sub.add_argument_group("target", "a rate instead of a preset, for images of one size")
    group.add_argument("--bpp", type=float, help="bits per pixel of the tokens")
    group.add_argument("--max-nfe", type=int, help="network calls of a decode, the solver's included (default: 25)")
    group.add_argument("--curve", metavar="FILE", help="what `noisebook calibrate` wrote; shipped backbones have one")
    add_encoder_options(sub)


def run_tokenize(args: argparse.Namespace) -> int:
    """Does it and prints the counts: 0, or 3 where images have failed (0 as a rank of torchrun). Raises what
    `run.tokenize` raises."""
    needed()
    from noisebook.datasets.run import tokenize

    names = ("resume", "input_format", "image_column", "resize", "mixed_sizes", "shard_size", "batch_size", "workers")
    names += ("max_errors", "actors", "retries")
    options = {name: getattr(args, name) for name in names}
    engine = "ray" if args.engine == "ray" else "local"
    found = tokenize(args.inputs, args.output, codec=recipe_of(args), engine=engine, log=log, **options)
    if args.json:
        print(json.dumps(found))
    else:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(found["failed_by_code"].items()))
        print(
            f"{args.output}: {found['shards']} of {found['of_shards']} shards, {found['n_in']} images: "
            f"{found['n_ok']} ok, {found['n_failed']} failed{f' ({codes})' if codes else ''}, "
            f"{found['remarks']} remarks"
        )
    alone = args.engine == "ray" or "TORCHELASTIC_RUN_ID" not in os.environ
    return ImageError.code if found["n_failed"] and alone else 0  # torchrun would end the other ranks


def recipe_of(args: argparse.Namespace) -> "CodecRecipe":
    """The codec that the options ask for."""
    from noisebook.datasets.recipe import CodecRecipe

    changes = {name: getattr(args, name) for name in KNOBS if getattr(args, name) is not None}
    names = ("preset", "backbone", "device", "bpp", "max_nfe", "curve", "effort", "candidates")
    return CodecRecipe(changes=changes, **{name: getattr(args, name) for name in names}, **network(args))


def add_detokenize(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("tokens", metavar="DIR", help="a data set of `noisebook tokenize`")
    sub.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the pictures, KEY.png; those that are there are left alone",
    )
    sub.add_argument("--first", type=int, metavar="N", help="only the first N images")
    sub.add_argument(
        "--steps", type=int, metavar="N", help="the first N steps of each alone; of a codec without steps: in N steps"
    )
    sub.add_argument("--batch-size", type=int, default=32, help="images decoded at once (default: 32)")
    sub.add_argument("--partial", action="store_true", help="of a data set that is not complete: what is done")
    sub.add_argument("--backbone", metavar="NAME|FILE|DIR", help="where it is, if it did not come with the package")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def run_detokenize(args: argparse.Namespace) -> int:
    """Does it."""
    needed()
    from noisebook.datasets.detokenize import detokenize
    from noisebook.datasets.reader import TokenDataset

    if args.batch_size < 1 or (args.first is not None and args.first < 0):
        raise SpecError("--batch-size must be at least 1, --first at least 0")
    data = TokenDataset(args.tokens, args.partial)
    codec = decoder(data, args.backbone, args.device)
    from tqdm import tqdm

    with tqdm(total=len(data) if args.first is None else min(args.first, len(data)), unit="img") as bar:
        found = detokenize(data, codec, args.output, args.batch_size, args.first, args.steps, bar.update)
    print(json.dumps(found) if args.json else f"{args.output}: {found['written']} written, {found['skipped']} were there")
    return 0


def decoder(data: "TokenDataset", backbone: str | None, where: str) -> "Codec":
    """The codec of a data set, with its network told what it was told when the tokens were made."""
    import noisebook

    told = {
        k: v
        for k, v in data.plan.settings.network.items()
        if k in ("dtype", "prompt", "negative_prompt", "guidance", "label")
    }
    how = {"dtype": told.pop("dtype", "float32"), "conditions": {k: _number(k, v) for k, v in told.items()}}
    return noisebook.load(data.spec, backbone=backbone, device=device(where), **how)


def _number(name: str, value: str) -> Any:
    return {"guidance": float, "label": int}.get(name, str)(value)


def add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("tokens", metavar="DIR", help="a data set of `noisebook tokenize`")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")
    sub.add_argument(
        "--format",
        required=True,
        choices=("webdataset", "npy", "megatron"),
        help="tars of .npy and .json; one .npy; Megatron-LM's .bin and .idx",
    )
    sub.add_argument("--partial", action="store_true", help="of a data set that is not complete: what is done")


def run_export(args: argparse.Namespace) -> int:
    """Does it."""
    needed()
    from noisebook.datasets.export import export

    found = export(args.tokens, args.output, args.format, args.partial)
    print(json.dumps(found) if args.json else f"{found['output']}: {found['images']} images, {found['tokens']} tokens")
    return 0


def verify(path: str, as_json: bool) -> int:
    """Checks a data set and prints what it found: 0, or 4 where it is damaged or not complete."""
    needed()
    from noisebook.datasets.verify import check

    found = check(path)
    if as_json:
        print(json.dumps({"name": path, **found}))
        return 0 if found["complete"] else FormatError.code
    for problem in found["problems"]:
        print(f"{path}/{problem['name']}: {problem['error']}")
    counts = f"{found['shards']} of {found['of_shards']} shards whole, {found['n_in']} images: {found['n_ok']} ok"
    print(f"{path}: {'ok' if found['complete'] else 'not complete, or damaged'}: {counts}, {found['n_failed']} failed")
    return 0 if found["complete"] else FormatError.code


def needed() -> None:
    """Raises DatasetError where the libraries of the extra `datasets` are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("pyarrow", "fsspec", "tqdm") if find_spec(name) is None]
    if missing:
        raise DatasetError(f"{', '.join(missing)} missing: pip install 'noisebook[datasets]'")


COMMANDS = {
    "tokenize": (add_tokenize, run_tokenize, "A whole data set to shards of tokens (Parquet): resumable, each image once."),
    "detokenize": (add_detokenize, run_detokenize, "A tokenised data set back to PNG pictures."),
    "export": (add_export, run_export, "A tokenised data set in another format: WebDataset, npy, Megatron."),
}
