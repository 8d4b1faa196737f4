"""What a report says about .nbk files: each is decoded once, and looked at after some of its steps."""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from noisebook.errors import CodecMismatchError, ImageError, NoisebookError, SpecError, printable
from noisebook.format.container import Container, read_file, unpack
from noisebook.images.files import check_decode, decode_picture, pixels_of, refuse_costly, spec_of
from noisebook.images.judges.judge import Judge
from noisebook.images.metrics import psnr
from noisebook.report.counting import Spent, spending
from noisebook.report.originals import Original, originals_of
from noisebook.report.shown import Shown, compared, mean_of
from noisebook.runtime.devices import usable_device
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.spec.spec import CodecSpec

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec
    from noisebook.codec.stream import Segment

LOOKS = 8  # at the picture while it is decoded, the end among them


@dataclass(frozen=True)
class Look:
    """What the decoder knew after `steps` steps, uint8 [H, W, C]: the mean that the network predicts, as of
    `noisebook decode --steps`; at the end the decode. bpp: bits per pixel up to there, None where they are not known."""

    steps: int
    pixels: np.ndarray
    bpp: float | None
    psnr: float | None


@dataclass(frozen=True)
class Picture:
    """A .nbk file as a report shows it.

    name      of the file, without its folder
    written   day on which the file was last written, UTC, as the file system says
    spent     tokens and bits of each step
    shown     the decode beside its original, whose place is `original`
    looks     from the beginning of the stream to its end; empty of a large picture, and of a codec without steps
    """

    name: str
    height: int
    width: int
    size: int  # bytes of the file
    payload: int  # bytes of the tokens in it
    written: str
    spec: CodecSpec
    dtype: str
    nfe: int  # network calls of a decode
    spent: list[Spent]
    shown: Shown
    original: Original
    looks: list[Look]


@dataclass(frozen=True)
class Pictures:
    """Files as a report shows them: `count` were given, those of `failed` (name -> error) could not be shown."""

    count: int
    pictures: list[Picture]
    failed: dict[str, NoisebookError]
    judged: dict[str, dict[str, Any]]  # other metrics over the shown pictures, as `Judge.summary` has them
    realism: float = 0.0

    def mean(self, what: str) -> float | None:
        """Mean of `psnr`, `ssim` or `bpp` over the pictures that have it."""
        return mean_of([picture.shown for picture in self.pictures], what)


class Reader:
    """Decodes files, by the codec that each says; a network that the next file has, too, is loaded once."""

    def __init__(
        self,
        backbone: str | None,
        device: str,
        limits: Limits,
        judge: Judge | None,
        realism: float,
        realism_network: str | Path | None,
        conditions: Mapping[str, Any] | None,
    ):
        self.backbone, self.device, self.limits = backbone, usable_device(device), limits
        self.judge, self.realism, self.realism_network = judge, realism, realism_network
        self.conditions = dict(conditions or {})
        self.codec: Codec | None = None

    def __call__(self, path: Path, original: Original) -> Picture:
        """Raises FormatError, CodecMismatchError, BackboneError or SpecError for a file that cannot be decoded here."""
        data = read_file(path)
        container, written = Container.from_bytes(data), time.gmtime(os.stat(path).st_mtime)
        spec = spec_of(container)
        if spec is None:
            raise CodecMismatchError(
                f"it was made by an unknown codec (hash {container.codec_hash.hex()}): encode it with --embed-spec"
            )
        height, width = container.height, container.width
        check_decode(spec, height, width, self.limits, None, self.realism)  # before a network is loaded
        codec = self._codec(spec)
        refuse_costly(codec, (height, width), self.limits, None, self.realism)
        stream = codec.stream(height, width)
        tokens = unpack(container.payload, stream.runs, self.limits)
        spent = spending(codec.spec_for(height, width), stream, tokens)
        at = looked_at(spent, len(spec.schedule))
        decoded, images = walked(codec, tokens, (height, width), at) if at and not stream.tiled else (None, {})
        if decoded is None or self.realism:
            decoded = decode_picture(codec, container, None, self.limits, self.realism)
        try:
            pixels = original.read(decoded.shape[2], height, width, self.limits)
        except ImageError as error:
            pixels, original = None, replace(original, problem=str(error))
        shown = compared(path.name, pixels, decoded, 8 * len(data) / (height * width), original.problem, self.judge)
        looks = [_look(k, image, spent, shown) for k, image in images.items()]
        if looks:
            looks.append(_look(len(spec.schedule), decoded, spent, shown))
        return Picture(
            path.name,
            height,
            width,
            len(data),
            len(container.payload),
            time.strftime("%Y-%m-%d", written),
            spec,
            codec.dtype,
            codec.nfe_of(None, self.realism),
            spent,
            shown,
            original,
            looks,
        )

    def _codec(self, spec: CodecSpec) -> "Codec":
        from noisebook.codec.codec import Codec
        from noisebook.codec.load import load

        if self.codec is None or self.codec.spec.hash != spec.hash:
            before, network = self.codec, self.realism_network
            if before is not None and (spec.backbone, spec.fingerprint) == (before.spec.backbone, before.spec.fingerprint):
                self.codec = Codec(spec, before.backbone, realism_network=network)
            else:
                how = {"conditions": self.conditions, "realism_network": network}
                self.codec = load(spec, backbone=self.backbone, device=self.device, **how)
        return self.codec


def gather(
    files: Sequence[Path],
    images: int = 12,
    backbone: str | None = None,
    device: str = "cpu",
    inputs: Sequence[str] | None = None,
    limits: Limits = DEFAULT,
    judge: Judge | None = None,
    realism: float = 0.0,
    realism_network: str | Path | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Pictures:
    """All that the page says about at most `images` of the files, spread over them. See `build_picture_report`."""
    if images < 1:
        raise SpecError(f"--images must be at least 1 for .nbk files, not {images}")
    wanted = min(images, len(files))
    chosen = [files[int((i + 0.5) * len(files) / wanted)] for i in range(wanted)]
    originals = originals_of(chosen, inputs)
    if judge is not None and judge.metrics and all(original.path is None for original in originals):
        raise SpecError("metrics compare with originals: give the pictures that were encoded as --inputs FOLDER")
    read = Reader(backbone, device, limits, judge, realism, realism_network, conditions)
    pictures: list[Picture] = []
    failed: dict[str, NoisebookError] = {}
    for path, original in zip(chosen, originals, strict=True):
        try:
            pictures.append(read(path, original))
        except NoisebookError as error:
            failed[str(path)] = error
    if not pictures:
        path, error = next(iter(failed.items()))
        raise type(error)(f"{printable(path)}: {error}") from error
    verdicts = [p.shown.verdict for p in pictures if p.shown.verdict is not None]
    return Pictures(len(files), pictures, failed, judge.summary(verdicts) if judge else {}, realism)


def looked_at(spent: Sequence[Spent], steps: int) -> list[int]:
    """The steps before whose tokens the picture is looked at, spread over those that have tokens: at most LOOKS - 1, the
    first among them."""
    indices = [row.step_index for row in spent if row.step_index >= 0]
    places = np.unique(np.linspace(0, len(indices), LOOKS).round().astype(int))[:-1]
    return [indices[place] for place in places] if indices and steps else []


def walked(
    codec: "Codec", tokens: np.ndarray, size: tuple[int, int], at: Collection[int]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(the decode of tokens int64 [L], what the network predicts before the tokens of the steps `at`), uint8 [H, W, C] each,
    in one walk: where the solver is `mean`, the second are the decodes of the first k steps."""
    stream = codec.stream(*size)
    given = torch.from_numpy(tokens)[None].to(codec.device)
    backbone, images = codec.parts.backbone, {}

    def choose(segment: "Segment", views: Tensor) -> Tensor:
        if segment.step_index in at:
            image = backbone.decode(stream.join(views))[0, :, : size[0], : size[1]]
            images[int(segment.step_index)] = pixels_of(image)
        return given[:, segment.offset : segment.offset + segment.count]

    return pixels_of(codec.walk(stream, 1, choose)[0]), images


def _look(steps: int, pixels: np.ndarray, spent: Sequence[Spent], shown: Shown) -> Look:
    bits = [row.bits for row in spent if row.step_index < steps]
    known = [value for value in bits if value is not None]
    bpp = sum(known) / (pixels.shape[0] * pixels.shape[1]) if len(known) == len(bits) else None
    return Look(steps, pixels, bpp, None if shown.original is None else psnr(pixels, shown.original))
