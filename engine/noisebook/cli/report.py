"""`noisebook report`: data sets of tokens as one page of HTML."""

import argparse
from pathlib import Path

from noisebook.cli import options

ABOUT = "Tokenised data sets as one page of HTML: pictures, tokens, rates, speed."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tokens", nargs="+", metavar="DIR", help="data sets of `noisebook tokenize`, one or several to compare"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument(
        "--images", type=int, default=12, metavar="N", help="images that are decoded, judged and shown (default: 12)"
    )
    options.add_data_set(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the page. Raises what `build_report` raises."""
    options.need_datasets()
    from noisebook.report.build import build_report
    from noisebook.runtime.atomic import write_bytes

    write_bytes(args.output, build_report(args.tokens, args.images, args.backbone, args.device).encode())
    print(args.output)
    return 0
