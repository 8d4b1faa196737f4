"""`noisebook report`: .nbk files, or data sets of tokens, as one page of HTML."""

import argparse
from pathlib import Path

from noisebook.cli import judging, options
from noisebook.cli.inputs import NBK
from noisebook.cli.outputs import refuse_existing
from noisebook.cli.realism import add_realism, realism_of
from noisebook.cli.show import failure, log, say, say_json
from noisebook.errors import DatasetError, NoisebookError, SpecError, printable
from noisebook.images.judges.catalogue import DEFAULT

ABOUT = "Files of tokens, or whole tokenised data sets, as one page of HTML: pictures, steps, tokens, rates, speed."
NO_ORIGINALS = "metrics compare with originals: give the pictures that were {} as --inputs FOLDER"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tokens",
        nargs="+",
        metavar="TOKENS",
        help=".nbk files or folders of them, such as `noisebook roundtrip` writes; or data sets of `noisebook tokenize`, "
        "one or several to compare",
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
        help="where the originals are: the picture, folder or file that was encoded or tokenised, or a copy; may be given "
        "several times. Without it the original of a .nbk file is taken from NAME.compared.png beside it, if that is there, "
        "and that of a data set is not shown: a path that a file records is never opened",
    )
    options.add_data_set(parser)
    options.add_conditions(parser)
    add_realism(parser)
    judging.add_metric_options(parser)
    options.add_force(parser)
    options.add_limits_of_files(parser, "pixels", "network_calls", "rows", "work")


def run(args: argparse.Namespace) -> int:
    """Writes the page. Raises what the builder raises, NoisebookError where the page is there, SpecError for data sets and
    .nbk files in one call. Returns the code of the first file that could not be shown."""
    kinds = {is_data_set(name) for name in args.tokens}
    if len(kinds) > 1:
        raise SpecError("data sets and .nbk files are on different pages: give one kind only")
    return of_data_sets(args) if kinds == {True} else of_files(args)


def is_data_set(name: str) -> bool:
    """Whether a name that was given is that of a data set: a URL, a folder that holds a plan or no .nbk file, or what is not
    there and has not the name of a .nbk file."""
    path = Path(name)
    if not name or "://" in name or "\0" in name or (path / "plan.json").exists():
        return True
    if path.is_dir():
        return next(path.rglob("*.nbk"), None) is None
    return not path.exists() and not name.lower().endswith(NBK)


def of_data_sets(args: argparse.Namespace) -> int:
    for name in args.tokens:
        if name and "\0" not in name and Path(name).is_dir() and not (Path(name) / "plan.json").exists():
            raise DatasetError(f"{printable(name)}: there is no data set (plan.json) and no .nbk file in it")
    from noisebook.report.build import build_report

    if conditions := options.conditions_of(args):
        name = next(iter(conditions)).replace("_", "-")
        raise SpecError(f"--{name} is for .nbk files: a data set records what its backbone was conditioned on")
    refuse_existing([args.output], args.force)
    sets = [Path(name).resolve() for name in args.tokens if "://" not in name]
    if args.output.exists() and any(args.output.resolve().is_relative_to(folder) for folder in sets):
        raise NoisebookError(f"{printable(args.output)}: it lies in a data set that is reported: choose another -o")
    limits, judge, realism = options.limits_of(args), None, realism_of(args)
    if judging.asked(args):
        if args.inputs is None or not args.images:
            raise SpecError(NO_ORIGINALS.format("tokenised"))
        judge = judging.judge_of(args, own=DEFAULT)
    how = (args.backbone, args.device, args.inputs, limits, judge, realism, args.realism_network)
    page = build_report(args.tokens, args.images, *how)
    if args.inputs is None and args.images:
        log("no originals are shown: give the pictures that were tokenised as --inputs FOLDER")
    return write(args, page, {"realism": realism})


def of_files(args: argparse.Namespace) -> int:
    from noisebook.images.folders import find_files
    from noisebook.report.build_pictures import build_picture_report

    files = find_files(args.tokens, NBK)
    refuse_existing([args.output], args.force, [*files, *(args.inputs or [])])
    limits, judge, realism = options.limits_of(args), None, realism_of(args)
    if judging.asked(args):
        judge = judging.judge_of(args, own=DEFAULT)
    how = (args.inputs, limits, judge, realism, args.realism_network, options.conditions_of(args))
    page, failed = build_picture_report(files, args.images, args.backbone, args.device, *how)
    rows, code = [], 0
    for name, error in failed.items():
        text, its_code = failure(error, args.traceback)
        code = code or its_code
        rows.append({"name": name, "error": text})
        log(f"{name}: {text}")
    return write(args, page, {"realism": realism, "failed": rows}) or code


def write(args: argparse.Namespace, page: str, facts: dict) -> int:
    from noisebook.runtime.atomic import write_bytes

    write_bytes(args.output, page.encode(errors="backslashreplace"), replace=args.force)
    if args.json:
        say_json({"output": str(args.output), **facts})
    else:
        say(args.output)
    return 0
