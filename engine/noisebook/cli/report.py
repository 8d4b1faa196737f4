"""The command `report`."""

import argparse
from pathlib import Path


def add_report(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("tokens", nargs="+", metavar="DIR", help="data sets of `noisebook tokenize`, one or several to compare")
    sub.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    sub.add_argument(
        "--images", type=int, default=12, metavar="N", help="images that are decoded, judged and shown (default: 12)"
    )
    sub.add_argument("--backbone", metavar="NAME|FILE|DIR", help="where it is, if it did not come with the package")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def run_report(args: argparse.Namespace) -> int:
    """Writes the page. Raises what `TokenDataset` and `Codec.decode` raise."""
    from noisebook.cli.datasets import needed

    needed()
    from noisebook.report.build import build_report
    from noisebook.runtime.atomic import write_bytes

    write_bytes(args.output, build_report(args.tokens, args.images, args.backbone, args.device).encode())
    print(args.output)
    return 0


COMMANDS = {"report": (add_report, run_report, "Tokenised data sets as one page of HTML: pictures, tokens, rates, speed.")}
