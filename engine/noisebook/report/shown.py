"""A picture beside its original, as a page shows both, and the lines below it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisebook.images.judges.judge import Judge, Verdict
from noisebook.images.judges.words import BY_KEY, remarks_of
from noisebook.images.metrics import psnr, ssim


@dataclass(frozen=True)
class Shown:
    """An image of the page: the original and the decode, uint8 [H, W, C]. `problem`: why there is no original, where one
    was looked for."""

    key: str
    original: np.ndarray | None
    decoded: np.ndarray
    bpp: float
    psnr: float | None  # dB; None without the original, or where nothing differs
    ssim: float | None
    problem: str = ""
    verdict: Verdict | None = None  # of other metrics, where they were asked for and there is an original

    @property
    def words(self) -> list[str]:
        """What it costs and how near it is, a phrase each: text of files is not escaped."""
        near = [f"PSNR {self.psnr:.2f} dB"] if self.psnr is not None else []
        near += [f"SSIM {self.ssim:.4f}"] if self.ssim is not None else []
        return [f"{self.bpp:.3f} bits per pixel", *near, *self._judged]

    @property
    def _judged(self) -> list[str]:
        """The other metrics, and why it has none of them."""
        if self.verdict is None:
            return []
        values = [(BY_KEY[key], value) for key, value in self.verdict.values.items() if value is not None]
        return [*(f"{metric.title} {metric.shown(value)}" for metric, value in values), *remarks_of(self.verdict.remarks)]


def compared(
    key: str, original: np.ndarray | None, decoded: np.ndarray, bpp: float, problem: str = "", judge: Judge | None = None
) -> Shown:
    """A decode beside its original, if there is one and it has the same size."""
    if original is not None and original.shape != decoded.shape:
        original, problem = None, "the picture has another size now"
    if original is None:
        return Shown(key, None, decoded, bpp, None, None, problem)
    verdict = judge(original, decoded) if judge else None
    return Shown(key, original, decoded, bpp, psnr(original, decoded), ssim(original, decoded), "", verdict)


def mean_of(shown: Sequence[Shown], what: str) -> float | None:
    """Mean of `psnr`, `ssim` or `bpp` over the images that have it."""
    values = [value for image in shown if (value := getattr(image, what)) is not None]
    return sum(values) / len(values) if values else None
