"""Whether x0_hat is right: errors at several levels beside what a denoiser without a network reaches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.backbones.wrappers.ranged import Ranged
from noisebook.codec.baseline import gaussian_errors, multiple_error, power
from noisebook.codec.trial import Row, noisy

HIGHEST, LOWEST, LEVELS = 20.0, 0.05, 8  # levels at which errors are measured, evenly spaced in ln sigma
LIMIT, LIMIT_ABOVE = 1.1, 1.5  # of an error, in errors of doing nothing; where the noise is stronger than the images
WORSE = 1.5  # times the error of a Gaussian: above it a row says that it is worse
BEYOND, SHARE = 1.5, 0.01  # x0_hat is out of range where more than this share of its values is beyond +- BEYOND
OURS = (-1.0, 1.0)
RANGES = ((0.0, 1.0), (-0.5, 0.5), (0.0, 255.0))  # of the images of other people's models
RANGE_LEVELS, BETTER = (0.3, 1.0, 3.0, 10.0), 1.4  # where ranges are compared; how many times better another one must be
ALIKE = 1.1  # how many times as large errors may be in a range that is named beside the best
FEW = 4  # images for that
LOW = 2 * LOWEST  # up to this level it is seen what x0_hat has of the noise; at higher ones a good one has some too
AS_NOISE = 0.5  # correlation of x0_hat with the noise above which it is a prediction of noise
ADDED = 0.3  # the same of x0_hat - y, above which the prediction has the wrong sign


@dataclass(frozen=True)
class Level:
    """Mean squared errors of x0_hat at a level: the backbone's, that of the best linear denoiser for Gaussian images with
    the spectrum of the same images, and that of doing nothing, which is the best multiple of y."""

    sigma: float
    mse: float
    gaussian: float
    nothing: float
    ok: bool


def levels(model: Backbone) -> tuple[list[float], Row]:
    """(levels at which errors are measured, [] where they cannot be; the row about the levels that the model knows)."""
    ratio = math.log(HIGHEST / LOWEST) / (LEVELS - 1)
    for sigma in (LOWEST * math.exp(ratio * i) for i in range(LEVELS)):
        level = model.round_sigma(sigma)
        if not (isinstance(level, float | int) and 0 < level < math.inf) or model.round_sigma(level) != level:
            again = model.round_sigma(level) if isinstance(level, float | int) else "an error"
            found = f"round_sigma({sigma:.3g}) is {level}, and of that {again}"
            return [], Row("levels", False, found, "round_sigma gives a float above 0, and a level that it knows as it is")
    known = sorted({model.round_sigma(LOWEST * math.exp(ratio * i)) for i in range(LEVELS)})
    grid = model.own_grid()
    own = [level for level in grid.levels if level < math.inf] if grid else []
    found = f"{len(own):,} from {own[0]:.3g} to {own[-1]:.3g}" if own else "continuous"
    return known, Row("levels", True, f"{found}{', and pure noise' if model.pure_noise else ''}")


def errors(
    model: Backbone, states: Sequence[Tensor], sigmas: Sequence[float], noise: torch.Generator
) -> tuple[list[Level], list[Row]]:
    """Errors at these levels of the states [B, ...], and a row for each, between rows about x0_hat being finite and in
    range. Where errors are large, one row before them says what to do, about the range of the model's images or the rest."""
    square, gaussian = power(states), gaussian_errors(states, sigmas)
    values = sum(x.numel() for x in states)
    slack = 3 * math.sqrt(2 / values)  # of the mean of that many squares
    measured: list[Level] = []
    low, high, beyond, where, fault = math.inf, -math.inf, 0.0, 0.0, ""
    for sigma, linear in zip(sigmas, gaussian, strict=True):
        total, outside = 0.0, 0
        for x in states:
            y = noisy(x, sigma, noise)
            x0_hat = model(y, sigma)
            fault = fault or (_fault_of(x0_hat, y, x) if sigma == sigmas[0] <= LOW else "")
            total += float((x0_hat.double() - x).square().sum())
            outside += int((x0_hat.abs() > BEYOND).sum())
            low, high = min(low, float(x0_hat.min())), max(high, float(x0_hat.max()))
        if outside / values > beyond:
            beyond, where = outside / values, sigma
        mse, nothing = total / values, multiple_error(square, sigma)
        limit = (LIMIT if sigma * sigma <= square else LIMIT_ABOVE) + slack
        measured.append(Level(sigma, mse, linear, nothing, mse <= limit * nothing))
    if infinite := [f"{level.sigma:.3g}" for level in measured if not math.isfinite(level.mse)]:
        do = "look for a division by 0 and for an overflow of half precision in denoise"
        return measured, [Row("finite", False, f"NaN or infinite at sigma = {', '.join(infinite)}", do)]
    in_range = not model.on_pixels or any(level.mse > level.gaussian for level in measured)
    advice = other_range(model, states[0][:FEW], noise) if model.on_pixels and in_range else None
    if advice is None and not all(level.ok for level in measured):
        advice = _errors(measured, fault)
    see = f"see {advice.name}" if advice else ""
    rows = [Row("finite", True, "at all levels"), *([advice] if advice else []), *(_row(x, slack, see) for x in measured)]
    if model.on_pixels:
        rows.append(_range(low, high, beyond, where, see))
    return measured, rows


def _fault_of(x0_hat: Tensor, y: Tensor, x: Tensor) -> str:
    """What to do where x0_hat goes with the noise y - x, or is farther along it than y; "" where it does neither."""
    eps, whole, added = ((t - t.mean()).double().flatten() for t in (y - x, x0_hat, x0_hat - y))
    if abs(_cosine(whole, eps)) > AS_NOISE:
        return (
            "x0_hat looks like the noise: make x0_hat of what the network predicts (eps, v, a score), see docs/backbones.md"
        )
    return "noise is added and not taken away: change the sign of the prediction" if _cosine(added, eps) > ADDED else ""


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))


def _errors(measured: Sequence[Level], fault: str) -> Row:
    """What to do about levels that are not ok, once for all of them; `fault` is what `_fault_of` says."""
    bad = [f"{level.sigma:.3g}" for level in measured if not level.ok]
    found = f"worse than doing nothing at {len(bad)} of {len(measured)} levels, sigma = {', '.join(bad)}"
    do = (
        "does the network get the level in its own unit (sigma, ln sigma, a time), with the right factor and direction? Is "
        "its input scaled as in training? Is what it predicts (eps, v, x0, a score) taken as that? Were the images that it "
        "was trained on in [-1, 1]?"
    )
    return Row("errors", False, found, fault or do)


def _row(level: Level, slack: float, see: str) -> Row:
    """The row of a level; `see` names the row that says what to do."""
    name, found = (
        f"error at {level.sigma:.3g}",
        f"{level.mse:.3g}, a Gaussian {level.gaussian:.3g}, nothing {level.nothing:.3g}",
    )
    if level.ok:
        return Row(name, True, f"{found}{', worse than a Gaussian' if level.mse > (WORSE + slack) * level.gaussian else ''}")
    return Row(name, False, found, f"worse than doing nothing, {see}")


def _range(low: float, high: float, beyond: float, sigma: float, see: str) -> Row:
    """Whether x0_hat is an image; `see` names the row that says what to do, where one says it already."""
    found = f"x0_hat is from {low:.3g} to {high:.3g}"
    if beyond <= SHARE:
        return Row("range", True, found)
    do = see or "x0_hat is an image in [-1, 1]: is it a code, a prediction of noise, or an image in another range?"
    return Row("range", False, f"{found}, {beyond:.0%} beyond {BEYOND} at sigma = {sigma:.3g}", do)


def other_range(model: Backbone, x: Tensor, noise: torch.Generator) -> Row | None:
    """A row about the range of images, where the model seems to be one of another range: its errors on x
    [B, C, H, W] are lower when it is taken as one. None where they are not. Of a `Ranged` the model inside is tried."""
    inner, declared = (model.inner, (model.low, model.high)) if isinstance(model, Ranged) else (model, OURS)
    eps = [torch.randn(x.shape, generator=noise).to(x) for _ in RANGE_LEVELS]  # the same for all
    ours = _score(inner, declared, x, eps)
    scores = {ends: _score(inner, ends, x, eps) for ends in (OURS, *RANGES) if ends != declared}
    least = min(scores.values())
    nothing = sum(math.log(multiple_error(power([x]), sigma)) for sigma in RANGE_LEVELS) / len(RANGE_LEVELS)
    if not ours - least > math.log(BETTER) or least > nothing:  # in no range it is a model of these images
        return None
    alike = [ends for ends, score in scores.items() if score - least < math.log(ALIKE)]
    shown = " or ".join(f"[{low:g}, {high:g}]" for low, high in alike)
    found = f"squared errors are {math.exp(min(50.0, ours - least)):.3g} times those of a model of images in {shown}"
    name, instead = "backbone", ""
    if inner is not model:
        name, instead = "inner", f" in place of Ranged(inner, {declared[0]:g}, {declared[1]:g})"
    calls = ["inner itself" if ends == OURS else f"Ranged({name}, {ends[0]:g}, {ends[1]:g})" for ends in alike]
    call = " or ".join(calls).replace("Ranged(", "noisebook.backbones.wrappers.ranged.Ranged(", 1)
    do = f"if it is one, take {call}{instead}; if not, are times and scale those of its training?"
    return Row("images", False, found, do)


def _score(model: Backbone, ends: tuple[float, float], x: Tensor, eps: Sequence[Tensor]) -> float:
    """The mean log of its squared errors on x as a model of images in that range; inf where it cannot be one."""
    ranged = model if ends == OURS else Ranged(model, *ends)
    total = 0.0
    try:
        for asked, noise in zip(RANGE_LEVELS, eps, strict=True):
            sigma = ranged.round_sigma(asked)
            mse = float((ranged.denoise(x + sigma * noise, sigma) - x).square().mean())
            total += math.log(max(mse, 1e-30)) if math.isfinite(mse) else math.inf
    except Exception:  # a level that it does not take
        return math.inf
    return total / len(RANGE_LEVELS)
