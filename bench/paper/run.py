"""The experiments of gDDCM (arXiv 2511.13387) on the shipped networks, one row after another: figures, plots, tables.

    python -m bench.paper.run                   # needs the data folder ($NOISEBOOK_DATA or ../shared/data); 50 CPU minutes
    python -m bench.paper.run --device cuda     # 2000 images a row, and N up to 1000 tokens at one token a call
    python -m bench.paper.run --only p --out p.json    # one section by itself, then the rest with --merge p.json
    python -m bench.paper.run --list            # the rows and their network calls
    python -m bench.paper.run --report          # only writes docs/paper.md and its plots; --check: is it up to date?

Every row codes the same held-out CIFAR-10 test images (the first `--images`; photographs: the last `--photos` of
photos256.npz, centre crops of 256 x 256). What the rows are: sections.py. How a row is measured, and that a run which was
stopped goes on: bench/lib/trials.py. The metrics: bench/lib/metrics.py.
"""

import argparse
from pathlib import Path

import numpy as np

from bench.lib import metrics, priors
from bench.lib.record import DATA, RESULTS
from bench.lib.rows import Row
from bench.lib.trials import TUNING, Bench
from bench.paper import report, sections, walks
from noisebook.codec.codec import Codec


def carry(folder: Path) -> None:
    """What a machine without the data folder needs, about 40 MiB: run there with NOISEBOOK_DATA=FOLDER."""
    (folder / metrics.RESNET).parent.mkdir(parents=True, exist_ok=True)
    for name in ("cifar10_test5k.npz", metrics.RESNET):
        (folder / name).write_bytes((DATA / name).read_bytes())
    with np.load(DATA / "photos256.npz") as data:
        offsets = data["offsets"][-(64 + TUNING // 4) - 1 :]
        np.savez(folder / "photos256.npz", webp=data["webp"][offsets[0] :], offsets=offsets - offsets[0])
    priors.carry_pca(folder)


def listing(rows: list[Row]) -> str:
    """The rows with their network calls (the solver `mean`) and how many choices are tried first."""
    lines = [f"{r.section:9s} {r.recipe['steps'] + 1:5d} calls, {len(r.choices):2d} choices  {r.label}" for r in rows]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, help="CIFAR-10 images a row; default 256, on CUDA 2000")
    add("--photos", type=int, help="photographs a row, at most 64; default 8, on CUDA 64")
    add("--device", default="cpu")
    add("--batch", type=int, help="images of 32 x 32 at a time; default 128, on CUDA 1000")
    add("--only", action="append", choices=sections.SECTIONS, help="only this section (repeatable)")
    add("--long", action="store_true", help="also the rows of 320 and 1000 network calls on a CPU")
    add("--minutes", type=float, default=1e9, help="start no row after this many minutes")
    add("--redo", action="store_true", help="compute rows again that are there")
    add(
        "--merge",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="first take over what other runs measured on this "
        "kind of device, for instance other sections in a process beside",
    )
    add("--lpips", type=Path, help="TorchScript file: two batches in [-1, 1] -> distances")
    add("--features", type=Path, help="TorchScript file: a batch in [-1, 1] -> features, or (features, class scores)")
    add("--out", type=Path, default=RESULTS / "paper.json")
    add("--dry", action="store_true", help="tiny synthetic pictures and a Gaussian model: proves the script (needs --out)")
    add("--carry", type=Path, metavar="FOLDER", help="only pack the data for a machine without them (NOISEBOOK_DATA=FOLDER)")
    add("--list", action="store_true", help="only list the rows")
    add("--report", action="store_true", help="only write docs/paper.md and its plots from the results")
    add("--check", action="store_true", help="with --report: only say whether docs/paper.md is up to date")
    args = parser.parse_args(argv)
    if args.report or args.check:
        return report.main(args.out, args.check)
    if args.carry:
        carry(args.carry)
        return 0
    if args.dry and args.out == parser.get_default("out"):
        parser.error("a dry run is no result: give another --out")
    cuda = args.device.startswith("cuda")
    rows = [r for r in sections.plan(args.dry) if not args.only or r.section in args.only]
    rows = [r for r in rows if args.long or cuda or not r.long]
    if args.list:
        print(listing(rows))
        return 0
    images = args.images or (4 if args.dry else 2000 if cuda else 256)
    given = metrics.GivenNetworks(args.lpips, args.features, args.device) if args.lpips or args.features else None
    bench = Bench(
        args.out,
        images,
        args.photos or (64 if cuda else 8),
        args.device,
        args.batch or (1000 if cuda else 128),
        args.dry,
        given,
        walks={"gddcm": Codec.reconstruct, "forced": lambda codec, images: walks.forced(codec, images)[:2]},
    )
    for path in args.merge:
        bench.take_over(path)
    complete = bench.run(rows, args.redo, args.minutes)
    bench.write()
    print(f"{'written' if complete else 'written in part'}: {args.out.name}; then: python -m bench.paper.run --report")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
