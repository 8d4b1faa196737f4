"""The command `report`."""

import argparse
from pathlib import Path

from noisebook.errors import DatasetError, SpecError


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
    from noisebook.cli.datasets import decoder, needed

    needed()
    from noisebook.report.collect import Source, choose
    from noisebook.report.page import page
    from noisebook.runtime.atomic import write_bytes

    if args.images < 0:
        raise SpecError(f"--images must be at least 0, not {args.images}")
    sources = [Source(folder) for folder in args.tokens]
    for source in sources:
        if not source.rows:
            raise DatasetError(f"{source.name}: there is no image in it yet: tokenize --resume")
    common = choose(sources, args.images)
    runs = []
    for source in sources:
        keys = common if all(key in source.rows for key in common) else choose([source], args.images)
        runs.append(source.run(decoder(source.data, args.backbone, args.device), keys))
    write_bytes(args.output, page(runs).encode())
    print(args.output)
    return 0


COMMANDS = {"report": (add_report, run_report, "Tokenised data sets as one page of HTML: pictures, tokens, rates, speed.")}
