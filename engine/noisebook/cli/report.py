"""`noisebook report`: data sets of tokens as one page of HTML."""

import argparse
from pathlib import Path

from noisebook.cli import judging, options
from noisebook.cli.outputs import refuse_existing
from noisebook.cli.realism import add_realism, realism_of
from noisebook.cli.show import say, say_json
from noisebook.errors import NoisebookError, SpecError, printable
from noisebook.images.judges.catalogue import DEFAULT

ABOUT = "Tokenised data sets as one page of HTML: pictures, tokens, rates, speed."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tokens", nargs="+", metavar="DIR", help="data sets of `noisebook tokenize`, one or several to compare"
    )
    parser.add_argument(
        "-o", "--output", type=options.path_of, default=Path("report.html"), help="the page (default: report.html)"
    )
    parser.add_argument(
        "--images", type=int, default=12, metavar="N", help="images that are decoded, judged and shown (default: 12)"
    )
    parser.add_argument(
        "--inputs",
        action="append",
        metavar="INPUT",
        help="where the pictures are that were tokenised: the folder or file that was given then, or a copy; may be given "
        "several times. Without it no original is shown: a path that a data set records is never opened",
    )
    options.add_data_set(parser)
    add_realism(parser)
    judging.add_metric_options(parser)
    options.add_force(parser)
    options.add_limits_of_files(parser, "pixels", "network_calls", "rows", "work")


def run(args: argparse.Namespace) -> int:
    """Writes the page. Raises what `build_report` raises, NoisebookError where the page is there."""
    from noisebook.report.build import build_report
    from noisebook.runtime.atomic import write_bytes

    refuse_existing([args.output], args.force)
    sets = [Path(name).resolve() for name in args.tokens if "://" not in name]
    if args.output.exists() and any(args.output.resolve().is_relative_to(folder) for folder in sets):
        raise NoisebookError(f"{printable(args.output)}: it lies in a data set that is reported: choose another -o")
    limits, judge, realism = options.limits_of(args), None, realism_of(args)
    if judging.asked(args):
        if args.inputs is None or not args.images:
            raise SpecError("metrics compare with originals: give the pictures that were tokenised as --inputs FOLDER")
        judge = judging.judge_of(args, own=DEFAULT)
    how = (args.backbone, args.device, args.inputs, limits, judge, realism, args.realism_network)
    page = build_report(args.tokens, args.images, *how)
    if args.inputs is None and args.images:
        options.log("no originals are shown: give the pictures that were tokenised as --inputs FOLDER")
    write_bytes(args.output, page.encode(errors="backslashreplace"), replace=args.force)
    if args.json:
        say_json({"output": str(args.output), "realism": realism})
    else:
        say(args.output)
    return 0
