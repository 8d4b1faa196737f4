"""What training on a CPU brought the embedded network, and what it did not bring a network for realism.

    python -m bench.findings.embedded    # writes the tables of docs/findings/embedded-network.md; --check

The losses are those that `noisebook train` wrote: bench/results/train_photo_2.json and train_photo_trials.json.
"""

import argparse
from typing import Any

from bench.lib import page
from bench.lib.record import ROOT

PAGE = ROOT / "docs/findings/embedded-network.md"
LEVELS = ("0.1", "0.3", "1.0", "3.0")
TRIALS = "train_photo_trials"


def runs() -> list[dict[str, Any]]:
    return page.load(TRIALS)["runs"]


def training() -> str:
    """Held-out errors of all trainings of a denoiser, and how much smaller they are than those of `photo`."""
    after, keys = page.load("train_photo_2"), [f"mse@{sigma}" for sigma in LEVELS]
    log, start = after["log"], after["start"]
    shown = [(run["recipe"], run["log"][-1]) for run in runs() if keys[0] in run["log"][-1]]
    shown += [("`photo-2`", log[i]) for i in range(2, len(log), 3)]
    rows = [["`photo`, the start", "0", *(f"{start[key]:.5f}" for key in keys)]]
    for name, entry in shown:
        errors = [f"{entry[key]:.5f} ({100 * (entry[key] / start[key] - 1):+.1f} %)" for key in keys]
        rows.append([name, f"{entry['minutes']:.0f}", *errors])
    head = ["network", "minutes", *(f"error at sigma {float(sigma):g}" for sigma in LEVELS)]
    return f"{page.table(head, rows)}\n\n{page.source(after, 'train_photo_2')}"


def realism() -> str:
    """What trials of realism networks changed on held-out decodes."""
    rows = []
    for run in runs():
        entry = run["log"][-1]
        if "held_out_features" in entry:
            features, psnr = ([entry[f"held_out_{name}{of}"] for of in ("_mean", "")] for name in ("features", "psnr"))
            figures = [*(f"{v:.3f}" for v in features), *(f"{v:.2f} dB" for v in psnr)]
            rows.append([run["recipe"], f"{entry['minutes']:.0f}", *figures])
    head = ["recipe", "minutes", "distance of features, mean", "of the network", "PSNR, mean", "of the network"]
    return f"{page.table(head, rows)}\n\n{page.source(page.load(TRIALS), TRIALS)}"


TABLES: page.Tables = {"training": training, "realism": realism}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    page.add_options(parser)
    page.fill(PAGE, TABLES, parser.parse_args().check)


if __name__ == "__main__":
    main()
