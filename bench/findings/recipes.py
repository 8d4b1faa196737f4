"""Ways to train a CIFAR-10 denoiser held against each other: held-out errors, and decibels above the Gaussian prior.

    python -m bench.findings.recipes first=FILE second=FILE ...   # needs the data folder; a few CPU minutes a checkpoint
    python -m bench.findings.recipes --report    # fills docs/findings/cifar10-recipes.md and draws its plot; --check

A recipe NAME has its losses in bench/results/train_cifar10_NAME.json. Rates and images are those of the paper's section
`rates`; what is measured goes to bench/results/recipes.json, and a run that is stopped goes on where it was.
"""

import argparse
from typing import Any

from bench.lib import page
from bench.lib.per_image import paired, within
from bench.lib.record import RESULTS, ROOT
from bench.lib.rows import BITS, PCA, Row, at_rate, key, resolved
from bench.lib.trials import Bench, trials
from noisebook.backbones import load

OUT = RESULTS / "recipes.json"
PAGE = ROOT / "docs/findings/cifar10-recipes.md"
PLOT = ROOT / "docs/images/cifar10-recipes.svg"
LEVELS = ("0.1", "0.3", "1.0", "3.0")


def rows(name: str) -> list[Row]:
    """Its codecs, one a rate."""
    return [
        Row("rates", f"{name}, {bits / 1024:g} bpp", name, at_rate(bits // 128), choices) for bits, choices in BITS.items()
    ]


def training(name: str) -> dict[str, Any]:
    return page.load(f"train_cifar10_{name}")


def names(result: dict[str, Any]) -> list[str]:
    """The recipes of a result file, as they were measured."""
    found = dict.fromkeys(row["settings"]["backbone"] for row in result["rows"].values())
    return [name for name in found if name != PCA]


def table() -> str:
    result = page.load("recipes")
    tried = trials(result)

    def at_rates(name: str) -> list[dict[str, Any]]:
        found = [resolved(row, tried) for row in rows(name)]
        return [result["rows"][key(wanted)] for wanted in found if wanted]

    lines = []
    for name in names(result):
        run = training(name)
        last, differences = run["log"][-1], zip(at_rates(name), at_rates(PCA), strict=True)
        lines.append(
            [
                f"`{name}`",
                f"{last['minutes']:.0f}",
                f"{last['iteration']:,}",
                *(f"{last[f'mse@{sigma}']:.5f}" for sigma in LEVELS),
                *(within(paired(a, b), "+") for a, b in differences),
            ]
        )
    head = [
        "recipe",
        "minutes",
        "steps of 64 images",
        *(f"error at sigma {sigma}" for sigma in LEVELS),
        *(f"above `{PCA}`, {bits / 1024:g} bpp" for bits in BITS),
    ]
    runs = [
        f"`{name}`: {training(name)['device']}, {training(name)['date']}, `{training(name)['command']}`"
        for name in names(result)
    ]
    return "\n\n".join([page.table(head, lines), "\n".join(f"- {run}" for run in runs), page.source(result, "recipes")])


def draw() -> None:
    """Held-out error over minutes of training, at a low, a middle and a high level."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "noisebook", "svg.fonttype": "none"})  # the same file for the same figures
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(LEVELS), figsize=(11, 3))
    for axis, sigma in zip(axes, LEVELS, strict=True):
        for name in names(page.load("recipes")):
            log = training(name)["log"]
            axis.plot([e["minutes"] for e in log], [e[f"mse@{sigma}"] for e in log], "o-", ms=3, lw=1, label=name)
        axis.set_title(f"sigma = {sigma}", fontsize=9)
        axis.set_xlabel("minutes")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean squared error, held out")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="NAME=FILE")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, {"recipes": table}):
        return None if args.check else draw()
    bench = Bench(OUT, images=256, photos=8)
    given = dict(text.split("=", 1) for text in args.checkpoints)
    bench.models |= {name: load(path) for name, path in given.items()}
    bench.run([row for name in (PCA, *given) for row in rows(name)], redo=False, minutes=1e9)
    bench.write()


if __name__ == "__main__":
    main()
