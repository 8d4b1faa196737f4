"""The metrics that compare a decoded picture with its original: what each is called, and which way is better."""

from collections.abc import Iterable
from dataclasses import dataclass

from noisebook.errors import SpecError, printable


@dataclass(frozen=True)
class Metric:
    """One metric.

    name      what `--metrics` calls it
    title     what tables call it
    higher    whether a higher value is better
    decimals  of its values in tables; `unit` stands behind them
    least     pixels a side that a picture must have; 0: any, or as many as the network that is given needs
    of_set    one value for all pictures together, not one a picture
    option    the option that names its network; "" where it needs none
    """

    name: str
    title: str
    higher: bool
    decimals: int = 4
    unit: str = ""
    least: int = 0
    of_set: bool = False
    option: str = ""

    @property
    def key(self) -> str:
        """Its name in rows and in JSON."""
        return self.name.replace("-", "_")

    @property
    def direction(self) -> str:
        return f"{'higher' if self.higher else 'lower'} is better"

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.{self.decimals}f}{f' {self.unit}' if self.unit else ''}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR", True, 2, "dB"),
        Metric("ssim", "SSIM", True, least=7),
        Metric("ms-ssim", "MS-SSIM", True, least=161),
        Metric("ssimulacra2", "SSIMULACRA2", True, 2, least=8),
        Metric("butteraugli", "Butteraugli", False, 3, least=8),
        Metric("lpips", "LPIPS", False, option="--lpips"),
        Metric("dists", "DISTS", False, option="--dists"),
        Metric("frechet", "Frechet distance", False, 3, of_set=True, option="--features"),
    )
}
DEFAULT = ("psnr", "ssim")


def chosen(text: str | None, networks: Iterable[str]) -> list[Metric]:
    """The metrics of a list such as "psnr,lpips" (None: DEFAULT), and those whose `networks` are given, in the order of
    METRICS. Raises SpecError for a name that is none, and for a metric whose network is missing."""
    names = list(DEFAULT) if text is None else [name.strip().lower().replace("_", "-") for name in text.split(",")]
    given = set(networks)
    for name in names:
        if name not in METRICS:
            raise SpecError(f"--metrics: {printable(name, 40)!r} is no metric: there are {', '.join(METRICS)}")
        if METRICS[name].option and name not in given:
            raise SpecError(f"--metrics {name} needs its network: {METRICS[name].option} FILE; {WHERE[name]}")
    return [metric for name, metric in METRICS.items() if name in names or name in given]


WHERE = {  # where to get the networks, which do not come with noisebook and are never downloaded
    "lpips": "a TorchScript program, or weights of torchvision's AlexNet or VGG16, for instance "
    "download.pytorch.org/models/alexnet-owt-7be5be79.pth; docs/metrics.md",
    "dists": "torchvision's VGG16 (download.pytorch.org/models/vgg16-397923af.pth) and, as a second --dists, weights.pt of "
    "the PyPI package dists-pytorch; docs/metrics.md",
    "frechet": "a TorchScript program, images -> features; docs/metrics.md",
}
