"""A report from the names of its data sets."""

from collections.abc import Sequence
from pathlib import Path

from noisebook.datasets.recipe import decoder
from noisebook.datasets.sources.located import Inputs
from noisebook.errors import DatasetError, FormatError, SpecError, printable
from noisebook.images.files import check_decode
from noisebook.images.judges.judge import Judge
from noisebook.report.collect import ReportRun, ReportSource, choose
from noisebook.report.page import page
from noisebook.runtime.limits import DEFAULT, Limits


def build_report(
    folders: Sequence[str],
    images: int = 12,
    backbone: str | None = None,
    device: str = "cpu",
    inputs: Inputs | None = None,
    limits: Limits = DEFAULT,
    judge: Judge | None = None,
    realism: float = 0.0,
    realism_network: str | Path | None = None,
) -> str:
    """The page, HTML, about data sets of `noisebook tokenize`: one, or several side by side.

    images    images that are decoded, compared with their originals, and shown, of each data set
    backbone  where it is, if it did not come with the package
    device    where images are decoded
    inputs    where the pictures are that were tokenised: a folder or file, or several, of all data sets; None: the page
              shows decodes without originals, because a path that a data set records is never opened
    limits    as of `TokenDataset`, and `network_calls` of a decode
    judge     metrics to compare the shown images by, beside PSNR and SSIM; needs `inputs`
    realism   of the decodes, from 0 to 1, as of `Codec.decode`; `realism_network` as of `noisebook.load`

    Raises SpecError for a bad number, and for a judge without originals to compare with; FormatError for a codec of more
    network calls, DatasetError where a data set or input is missing or has no image yet, and what `noisebook.load` and
    `Codec.decode` raise.
    """
    if images < 0:
        raise SpecError(f"--images must be at least 0, not {images}")
    if judge is not None and judge.metrics and inputs is None:
        raise SpecError("metrics compare with originals: give the pictures that were tokenised as --inputs FOLDER")
    sources = [ReportSource(folder, inputs, limits) for folder in folders]
    for source in sources:
        if not source.rows:
            raise DatasetError(f"{printable(source.name)}: there is no image in it yet: tokenize --resume")
    common = choose(sources, images)
    runs: list[ReportRun] = []
    for source in sources:
        keys = common if all(key in source.rows for key in common) else choose([source], images)
        try:
            # what a decode of any size takes, before a network is loaded
            check_decode(source.data.spec, 1, 1, limits, None, realism)
        except FormatError as error:
            raise FormatError(f"{printable(source.name)}: {error}") from error
        plan = source.data.plan
        codec = decoder(source.data.spec, plan.settings.network, backbone, device, realism_network, plan.factory)
        runs.append(source.run(codec, keys, judge, realism))
    return page(runs)
