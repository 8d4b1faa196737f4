"""A report from .nbk files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from noisebook.errors import NoisebookError
from noisebook.images.folders import find_files
from noisebook.images.judges.judge import Judge
from noisebook.report.picture_page import picture_page
from noisebook.report.pictures import gather
from noisebook.runtime.limits import DEFAULT, Limits

NBK = (".nbk",)
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class PictureReport(NamedTuple):
    """The page, HTML, and why files could not be shown on it, by their names."""

    page: str
    failed: dict[str, NoisebookError]


def build_picture_report(
    files: Paths,
    images: int = 12,
    backbone: str | None = None,
    device: str = "cpu",
    inputs: Paths | None = None,
    limits: Limits = DEFAULT,
    judge: Judge | None = None,
    realism: float = 0.0,
    realism_network: str | Path | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> PictureReport:
    """The page about .nbk files, or folders of them such as `noisebook roundtrip` writes.

    images    files that are decoded and shown, spread over those that are given
    backbone  where it is, if it did not come with the package; `conditions` as of `noisebook.load`
    device    where files are decoded
    inputs    the originals: local pictures or folders of them, found by the names of the files. Without it, and for a file
              whose original is not among them, NAME.compared.png beside the file is read, which `roundtrip` writes
    limits    `pixels` of a picture and a decode, `network_calls` of a decode, `work` of parsing tokens
    judge     metrics to compare the pictures by, beside PSNR and SSIM
    realism   of the decodes, from 0 to 1, as of `Codec.decode`; `realism_network` as of `noisebook.load`

    A file that cannot be shown is named on the page, and the others are shown. Raises the error of the first one where there
    is none to show, SpecError for a bad number and for a judge without an original, and NoisebookError for a folder without
    files.
    """
    paths = find_files(_names(files), NBK)
    given = None if inputs is None else _names(inputs)
    how = (limits, judge, realism, realism_network, conditions)
    made = gather(paths, images, backbone, device, given, *how)
    return PictureReport(picture_page(made), made.failed)


def _names(paths: Paths) -> list[str]:
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
