"""Whether a backbone does what noisebook takes for granted: what `noisebook.check` and `noisebook check` do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook import backbones
from noisebook.backbones import Backbone
from noisebook.backbones.precision import AUTO
from noisebook.backbones.wrappers.hosted import hosted
from noisebook.codec import accuracy, trial
from noisebook.codec.accuracy import Level
from noisebook.codec.checks import check_backbone, check_images
from noisebook.codec.trial import Row
from noisebook.errors import ImageError, SpecError
from noisebook.runtime.devices import own_defaults, usable_device, working_device
from noisebook.runtime.pixels import from_uint8

PIXELS = 1 << 18  # of the images of a call, unless one has more
FEW = 4  # images whose rows are compared


@dataclass
class Checkup:
    """What `check` found. `rows` are in the order of the table; the errors by level are in `levels` too."""

    backbone: str
    fingerprint: str
    images: int
    size: tuple[int, int]  # (height, width) of the images of the first call, before they are padded
    device: str
    dtype: str
    weight_bytes: int
    rows: list[Row] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    batch: int | None = None  # images of the call that was timed
    seconds: float | None = None  # of that call
    peak_bytes: int | None = None  # that the call took beside what was there; None where nobody counts it

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.ok for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """As --json has it; numbers that are not finite are None."""
        values = {name: value for name, value in vars(self).items() if name not in ("rows", "levels", "size")}
        values |= {"ok": self.ok, "height": self.size[0], "width": self.size[1]}
        errors = [{name: _finite(value) for name, value in vars(level).items()} for level in self.levels]
        return {**values, "checks": [dict(vars(row)) for row in self.rows], "errors": errors}

    def lines(self) -> list[str]:
        """The table: of each check whether it is passed, its name, what was found, and where it failed what to do."""
        width = max((len(row.name) for row in self.rows), default=0)
        return [
            f"{'ok' if row.ok else 'FAIL':4s}  {row.name.ljust(width)}  {row.found}{f': {row.do}' if row.do else ''}"
            for row in self.rows
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@own_defaults()
def check(
    backbone: str | Backbone,
    images: Tensor | Sequence[Tensor],
    *,
    device: str = "cpu",
    dtype: str = AUTO,
    conditions: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Checkup:
    """Tries a backbone on images like those that it is for. Is x0_hat finite and in range, are times and scale right, are
    the rows of a batch independent, is the result repeatable, are sizes and channels as it says, how fast is a call, and
    what memory does it take? `Checkup.ok` says whether all is well; `print` shows a table.

    backbone  a name, path, MODULE:FACTORY or `Backbone`
    images    uint8, or float in [-1, 1], [B, C, H, W]; or several such tensors of one size each. 4 to 16 images are enough
    device, dtype, conditions   as of `noisebook.load`, of a backbone that is given by name; an object is unchanged
    seed      of the noise

    A fault of the backbone is a row of the result. Raises BackboneError for what is no backbone, and as `noisebook.load`;
    ImageError for images of another shape, type or range, and for none.
    """
    if isinstance(backbone, str):
        model = backbones.load(backbone, usable_device(device), accelerated={"dtype": dtype}, **(conditions or {}))
    elif conditions:
        raise SpecError("a backbone that is already loaded takes no conditions; give them to noisebook.backbones.load")
    else:
        model = backbone
    check_backbone(model)
    given = _images(images, model)
    result = Checkup(
        model.name,
        model.fingerprint,
        sum(map(len, given)),
        (given[0].shape[2], given[0].shape[3]),
        str(model.device),
        model.computes_in,
        sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]),
    )
    with torch.no_grad():
        _examine(hosted(model), given, result, torch.Generator().manual_seed(seed))
    return result


def _images(images: Tensor | Sequence[Tensor], model: Backbone) -> list[Tensor]:
    """float32 [B, C, H, W] in [-1, 1], where a codec works with the backbone, as many as a call takes."""
    batches = []
    for given in [images] if isinstance(images, Tensor) else images:
        x = check_images(given, model.channels if model.channels in (1, 3) else given.shape[1], working_device(model.device))
        x = from_uint8(x) if x.dtype == torch.uint8 else x
        if not (x.abs() <= 1).all():
            raise ImageError("images of floats are in [-1, 1]: of those in [0, 1] make 2 * images - 1")
        batches += x.split(max(1, PIXELS // x[0, 0].numel()))
    if not batches:
        raise ImageError("no images to check on: give some")
    return batches


def _examine(model: Backbone, given: Sequence[Tensor], result: Checkup, noise: torch.Generator) -> None:
    """Fills `result`. After a fault that leaves no x0_hat the rest cannot be tried, and is left out."""
    rows = result.rows
    rows += trial.identity(model)
    if not rows[-1].ok:
        return
    padded: list[Tensor] = []
    states: list[Tensor] = []

    def prepare() -> list[Row]:
        for x in given:
            height, width = model.padded(x.shape[2], x.shape[3])
            padded.append(F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate"))
            states.append(model.encode(padded[-1]))
        return [Row("state", True, f"{list(states[0].shape[1:])} of {given[0].shape[2]} x {given[0].shape[3]} pixels")]

    rows += trial.attempt("state", "give images that it takes, or mend padded(height, width) and encode(images)", prepare)
    if rows[-1].ok:
        first = states[0]
        rows += trial.call(model, trial.noisy(first[:1], 1.0, noise))
    if not rows[-1].ok:
        return

    def accuracy_of() -> list[Row]:
        sigmas, row = accuracy.levels(model)
        if not sigmas:
            return [row]
        result.levels, more = accuracy.errors(model, states, sigmas, noise)
        return [row, *more]

    def cost() -> list[Row]:
        result.batch = len(first)
        result.seconds, result.peak_bytes, more = trial.cost(model, trial.noisy(first, 1.0, noise), result.weight_bytes)
        return more

    few = first[:FEW] if len(first) > 1 else first.repeat(2, 1, 1, 1)
    again = "it worked with one image at sigma = 1: does it take a batch [B, C, H, W], and every level?"
    rows += trial.attempt("errors", again, accuracy_of)
    rows += trial.attempt("rows of a batch", again, lambda: trial.same_answers(model, trial.noisy(few, 1.0, noise)))
    rows += trial.attempt("sizes", "mend padded(height, width) and state_shape(height, width)", lambda: trial.sizes(model))
    if model.pure_noise:
        no = "at sigma = inf there is no y: if denoise does not know that level, set pure_noise = False"
        rows += trial.attempt("pure noise", no, lambda: trial.pure_noise(model, first, noise))
    if not model.on_pixels:
        mend = "encode(images) and decode(x0) go from images to states and back"
        rows += trial.attempt("autoencoder", mend, lambda: trial.autoencoder(model, padded[0], first))
    rows += trial.attempt("time", again, cost)
