"""`noisebook detokenize`: a data set of tokens back to pictures."""

import argparse

from noisebook.cli import options
from noisebook.cli.realism import add_realism, realism_of
from noisebook.cli.show import log_failures, say, say_json
from noisebook.errors import ImageError, SpecError

ABOUT = "A tokenised data set back to PNG pictures."
MEMORY = (
    "memory that may be taken, such as 512M or 4G: batches of large pictures are smaller (default: half of the machine's)"
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokens", metavar="DIR", help="a data set of `noisebook tokenize`")
    parser.add_argument(
        "-o",
        "--output",
        type=options.path_of,
        required=True,
        metavar="DIR",
        help="folder of the pictures, KEY.png: new, empty, or with pictures of this data set, which are not made again",
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="only the first N steps of each; of a codec without steps: in N steps"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images decoded at once (default: 32)")
    parser.add_argument("--partial", action="store_true", help="of a data set that is not complete: what is done")
    options.add_data_set(parser)
    add_realism(parser)
    options.add_limits_of_files(parser, "pixels", "network_calls")
    parser.add_argument("--memory", type=options.size_of, metavar="SIZE", help=MEMORY)


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and prints the counts: 0, or 3 where images have failed. Raises what `TokenDataset` and
    `detokenize` raise."""
    from noisebook.datasets.detokenize import detokenize
    from noisebook.datasets.reader import TokenDataset
    from noisebook.datasets.recipe import decoder

    if args.batch_size < 1 or (args.first is not None and args.first < 0):
        raise SpecError("--batch-size must be at least 1, --first at least 0")
    limits, realism = options.limits_of(args), realism_of(args)
    data = TokenDataset(args.tokens, args.partial, limits=limits)
    where = (args.backbone, args.device, args.realism_network, data.plan.factory)
    codec = decoder(data.spec, data.plan.settings.network, *where)
    from tqdm import tqdm

    with tqdm(total=len(data) if args.first is None else min(args.first, len(data)), unit="img") as bar:
        how = (args.batch_size, args.first, args.steps, bar.update, limits, realism)
        counts = detokenize(data, codec, args.output, *how)
    if args.json:
        say_json({**counts, "realism": realism})
    else:
        log_failures(counts["failed"], counts["n_failed"], "--json names them")
        codes = ", ".join(f"{count} {code}" for code, count in sorted(counts["failed_by_code"].items()))
        failed = f", {counts['n_failed']} failed ({codes})" if counts["n_failed"] else ""
        say(f"{args.output}: {counts['written']} written, {counts['skipped']} were there{failed}")
    return ImageError.code if counts["n_failed"] else 0
