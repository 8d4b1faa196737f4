"""Options of metrics, and what the verbs that compare pictures say of them."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from noisebook.cli.options import path_of
from noisebook.errors import ImageError, SpecError
from noisebook.images.judges.catalogue import DEFAULT, METRICS, chosen
from noisebook.images.judges.words import line_of
from noisebook.runtime.devices import usable_device

if TYPE_CHECKING:
    import numpy as np

    from noisebook.images.judges.judge import Judge, Verdict

NETWORKS = {  # metric -> option's destination
    metric.name: metric.option.removeprefix("--") for metric in METRICS.values() if metric.option
}


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "metrics", "how decodes are compared with their originals (docs/metrics.md); networks are files of your own"
    )
    group.add_argument(
        "--metrics",
        metavar="NAME,...",
        help=f"of {', '.join(METRICS)} (default: {','.join(DEFAULT)}); those whose network is given are taken, too",
    )
    about = "TorchScript, which is a program and is run, or a state dict; again for its other parts"
    group.add_argument("--lpips", type=path_of, action="append", metavar="FILE", help=f"network of LPIPS: {about}")
    group.add_argument("--dists", type=path_of, action="append", metavar="FILE", help=f"network of DISTS: {about}")
    group.add_argument(
        "--features",
        type=path_of,
        action="append",
        metavar="FILE",
        help="network of the Frechet distance between all originals and all decodes: TorchScript, images -> features",
    )
    group.add_argument(
        "--patch", type=int, metavar="N", help="side of the squares whose features are taken (default: whole pictures)"
    )


def asked(args: argparse.Namespace) -> bool:
    """Whether an option of `add_metric_options` is given."""
    return any(getattr(args, name) is not None for name in ("metrics", "patch", *NETWORKS.values()))


def judge_of(args: argparse.Namespace, own: Iterable[str] = ()) -> "Judge":
    """The judge that the options ask for, without the metrics that the caller computes of its `own`. Raises SpecError for
    options that contradict each other, and as `Judge`."""
    networks = {name: given for name, option in NETWORKS.items() if (given := getattr(args, option))}
    if args.patch is not None and "frechet" not in networks:
        raise SpecError("--patch is for the Frechet distance: give its network, --features FILE")
    metrics = [metric for metric in chosen(args.metrics, networks) if metric.name not in own]
    from noisebook.images.judges.judge import Judge

    return Judge(metrics, networks, usable_device(args.device), args.patch or 0)


class Judged:
    """A judge with the verdicts of a run. `said`: whether text names each metric with its direction and network."""

    def __init__(self, judge: "Judge", said: bool):
        self.judge, self.said = judge, said
        self.verdicts: list[Verdict] = []

    def __call__(self, original: "np.ndarray", decoded: "np.ndarray") -> "Verdict":
        self.verdicts.append(self.judge(original, decoded))
        return self.verdicts[-1]

    def summary(self) -> dict[str, dict[str, Any]]:
        return self.judge.summary(self.verdicts)

    @property
    def code(self) -> int:
        """The exit code: not 0 where a metric that an option asked for was not computed for a picture, or for the set."""
        missing = any(v.refused for v in self.verdicts) or (
            self.judge.extractor is not None and self.summary()["frechet"]["value"] is None
        )
        return ImageError.code if self.said and missing else 0

    def lines(self) -> list[str]:
        """A line for each metric."""
        return [line_of(key, entry) for key, entry in self.summary().items()] if self.said else []
