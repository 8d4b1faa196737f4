"""`noisebook tokenize`: a whole data set to shards of tokens."""

import argparse
import csv
from typing import TYPE_CHECKING

from noisebook.cli import options
from noisebook.cli.show import log, log_failures, say, say_json, shown
from noisebook.errors import ImageError

if TYPE_CHECKING:
    from noisebook.datasets.recipe import CodecRecipe

ABOUT = "A whole data set to shards of tokens (Parquet): resumable, each image once."
ENGINES = ("local", "ray")
JOB = (
    "resume",
    "input_format",
    "image_column",
    "image_suffix",
    "drop_columns",
    "resize",
    "mixed_sizes",
    "shard_size",
    "batch_size",
    "workers",
    "max_errors",
    "actors",
    "retries",
)
CODEC = ("preset", "backbone", "device", "bpp", "max_nfe", "curve", "effort", "candidates")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a folder of pictures, WebDataset .tar files, or .parquet "
        "files with image bytes; or folders or patterns (*) of them; local, or of fsspec",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder or URL of the data set of tokens")
    parser.add_argument("--resume", action="store_true", help="go on with what is there (an empty folder too)")
    parser.add_argument("--input-format", choices=("pictures", "webdataset", "parquet"), help="where there are several")
    parser.add_argument(
        "--image-column",
        metavar="NAME",
        help="Parquet: column of the images (default: a struct with bytes, then image, jpg, png, "
        "then the first of bytes that are pictures)",
    )
    parser.add_argument(
        "--drop-columns",
        type=names_of,
        action="extend",
        default=[],
        metavar="NAME,...",
        help="columns of the input that do not go along; a name with a comma in double quotes",
    )
    parser.add_argument(
        "--image-suffix",
        default="",
        metavar="ENDING",
        help="pictures and tars: take the pictures with this ending, such as depth.png, and pass over the others",
    )
    parser.add_argument(
        "--resize",
        type=int,
        default=0,
        metavar="SIDE",
        help="scale the shorter side to that many pixels and keep the square in the middle",
    )
    parser.add_argument(
        "--mixed-sizes",
        action="store_true",
        help="take images of any size, in lists that differ in length "
        "(default: only if the first 64 already differ; other sizes fail otherwise)",
    )
    parser.add_argument("--shard-size", type=int, default=1000, help="images per shard, the unit of work (default: 1000)")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="images coded at once (default: 32; on CUDA, for images of one size, 8 megapixels together, at most 1024)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that decode pictures, shared out between devices; 0: none (default: one for each core, up to 8 for "
        "each device)",
    )
    parser.add_argument("--max-errors", type=int, help="stop when more images have failed (default: never)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="local: this process, one for each of several devices, or one of several ranks that "
        "torchrun, mpirun or Slurm starts; ray: actors of a Ray cluster (default: local)",
    )
    parser.add_argument("--actors", type=int, help="ray: how many (default: one per GPU, or per two CPU cores)")
    parser.add_argument(
        "--retries", type=int, default=2, help="more tries of a shard whose process or actor died (default: 2)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, mps, cuda (all GPUs of this machine; under torchrun or mpirun that of the local rank), ..., or several "
        "with commas, as cuda:0,cuda:1 (default: cpu)",
    )
    options.add_codec_options(parser)
    group = parser.add_argument_group("target", "a rate instead of a preset, for images of one size")
    group.add_argument("--bpp", type=float, help="bits per pixel of the tokens")
    options.add_limits(group)
    options.add_encoder_options(parser)
    options.add_limits_of_files(parser, "pixels", "rows")
    parser.add_argument(
        "--memory",
        type=options.size_of,
        metavar="SIZE",
        help="memory that this process and its workers may take, such as 512M or 4G (default: half of the machine's): a "
        "picture that needs more fails, batches of large pictures are smaller",
    )


def run(args: argparse.Namespace) -> int:
    """Tokenises and prints the counts: 0, or 3 where images have failed (0 for a rank of torchrun or mpirun). Raises what
    `datasets.run.tokenize` raises."""
    from noisebook.datasets.job import ends_together
    from noisebook.datasets.run import tokenize

    values = {name: getattr(args, name) for name in JOB}
    limits, codec = options.limits_of(args), recipe_of(args)
    counts = tokenize(args.inputs, args.output, codec=codec, engine=args.engine, log=log, limits=limits, **values)
    log_failures(counts["failed"], counts["n_failed"], f"{shown(args.output)}/ledger names all")
    if args.json:
        say_json(counts)
    else:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts["passed_over"].items()))
        codes = ", ".join(f"{count} {code}" for code, count in sorted(counts["failed_by_code"].items()))
        say(
            f"{args.output}: {counts['shards']} of {counts['of_shards']} shards, {counts['n_found']} images found: "
            f"{counts['n_ok']} ok, {counts['n_failed']} failed{f' ({codes})' if codes else ''}, "
            f"{counts['n_passed_over']} passed over{f' ({reasons})' if reasons else ''}, {counts['remarks']} remarks"
        )
    ranked = args.engine != "ray" and ends_together()
    return ImageError.code if counts["n_failed"] and not ranked else 0  # another code would end the other ranks


def names_of(text: str) -> list[str]:
    """Names with commas between them, in double quotes where one has a comma. ArgumentTypeError for an empty one."""
    try:
        names = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f"{error}: write NAME,NAME, a name with a comma in double quotes") from error
    if not names or not all(names):
        raise argparse.ArgumentTypeError("one of the names is empty")
    return names


def recipe_of(args: argparse.Namespace) -> "CodecRecipe":
    """The codec that the options ask for."""
    from noisebook.datasets.recipe import CodecRecipe

    changes = {name: getattr(args, name) for name in options.KNOBS if getattr(args, name) is not None}
    values = {name: getattr(args, name) for name in CODEC}
    return CodecRecipe(changes=changes, **values, **{**options.network(args), "compile": args.compile})
