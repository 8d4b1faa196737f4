"""The single checks of a checkup: each calls a backbone and gives rows that say what was found, and what to do about it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.backbones.base import no_fingerprint
from noisebook.codec.baseline import power
from noisebook.errors import printable, said
from noisebook.runtime.devices import working_device
from noisebook.runtime.peak import peak_bytes
from noisebook.spec.spec import identity_fault

TOLERANCE = 1e-3  # of x0_hat at sigma = 1 between a row by itself and in a batch; of a network in less than float32 ...
TOLERANCE_OF_HALVES = 0.1
SIZES = ((19, 30), (33, 21))  # that a model of any size is asked for, padded to what it takes
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)  # that are tried where the model's own does not work
REPEATS = 3  # of the call that is timed
LIMIT = 1.6  # of the error in pure noise, in mean squares of the images
MEMORY = "give smaller or fewer images, or a device with more memory"


@dataclass(frozen=True)
class Row:
    """A check: what was `found`; where it is not `ok`, what to `do`."""

    name: str
    ok: bool
    found: str
    do: str = ""


def attempt(name: str, do: str, work: Callable[[], list[Row]]) -> list[Row]:
    """The rows of `work`, or one with the error that it raises."""
    try:
        return work()
    except Exception as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        return [Row(name, False, f"it raises {said(error)}", MEMORY if short else do)]


def identity(model: Backbone) -> list[Row]:
    """Name, fingerprint, and what the backbone says of its images."""
    if not model.fingerprint:
        mark = Row("fingerprint", False, "none", no_fingerprint())
    elif fault := identity_fault(model.name, model.fingerprint):
        mark = Row("fingerprint", False, fault, "noisebook.backbones.fingerprint_of({}, net.state_dict()) makes one")
    else:
        mark = Row("fingerprint", True, f"{printable(model.name, 60)}, {model.fingerprint[:16]}")
    size = model.size
    pair = size is None or (
        isinstance(size, tuple | list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    )
    if model.channels not in (1, 3):
        found = f"channels = {printable(model.channels, 40)}"
        says = Row("description", False, found, "images have 3 channels (RGB) or 1 (grey)")
    elif type(model.multiple) is not int or model.multiple < 1 or not pair:
        found = f"multiple = {printable(model.multiple, 40)}, size = {printable(size, 40)}"
        says = Row("description", False, found, "multiple is a whole number from 1 on, size None or (height, width)")
    else:
        any_size = "any size" if model.multiple == 1 else f"multiples of {model.multiple}"
        sizes = f"only {size[0]} x {size[1]}" if size else any_size
        says = Row("description", True, f"{'RGB' if model.channels == 3 else 'grey'}, {sizes}")
    return [mark, says]


def call(model: Backbone, y: Tensor) -> list[Row]:
    """The first call: x0_hat has the shape and type of y."""
    name = "call"

    def work() -> list[Row]:
        x0_hat = model(y, model.round_sigma(1.0))
        if not isinstance(x0_hat, Tensor):
            return [Row(name, False, f"denoise gives a {type(x0_hat).__name__}", "return the tensor x0_hat")]
        if x0_hat.shape != y.shape or x0_hat.dtype != y.dtype:
            what = f"{list(x0_hat.shape)} {x0_hat.dtype} for {list(y.shape)} {y.dtype}"
            return [Row(name, False, f"denoise gives {what}", "return x0_hat in the shape and type of y")]
        return [Row(name, True, f"{list(y.shape)} float32")]

    (row,) = attempt(name, "", work)
    if row.ok or row.do:
        return [row]
    hint = _other_channels(model, y) or _other_multiple(model)
    takes = (
        "denoise(y, sigma, cond=None) takes y float32 [B, C, H, W] and a float; for a network that takes a tensor [B], "
        "noisebook.backbones.families.network.full(y, sigma) makes one of it"
    )
    return [Row(name, False, row.found, hint or takes)]


def same_answers(model: Backbone, y: Tensor) -> list[Row]:
    """Whether y [B, ...], B > 1, at sigma = 1 stays as it is and gives the same twice, and its rows do not depend on each
    other."""
    sigma, before = model.round_sigma(1.0), y.clone()
    first = model(y, sigma).clone()
    if not torch.equal(y, before):
        do = "work on a copy, y = y.clone(), and call nothing on y that ends in _"
        return [Row("input", False, "denoise changes y", do)]
    rows = [Row("input", True, "left as it is")]
    again, alone = model(y, sigma).clone(), model(y[1:2].clone(), sigma)
    largest = max(1.0, float(first.abs().max()))
    twice, apart = (float((a - b).abs().max()) / largest for a, b in ((first, again), (first[1:2], alone)))
    most = TOLERANCE if model.computes_in in ("float32", "float64") else TOLERANCE_OF_HALVES
    if not twice <= most / 10:
        do = "call .eval() on the network (dropout), and draw nothing at random in denoise"
        return [*rows, Row("repeatable", False, f"the same input gives another x0_hat, by {twice:.2g}", do)]
    rows.append(Row("repeatable", True, f"up to {twice:.1g}" if twice else "the same bits twice"))
    if not apart <= most:
        do = "call .eval() on the network (batch norm), and use no mean, minimum or maximum over the batch"
        return [*rows, Row("rows of a batch", False, f"a row by itself gives another x0_hat, by {apart:.2g}", do)]
    return [*rows, Row("rows of a batch", True, f"independent, up to {apart:.1g}" if apart else "independent")]


def sizes(model: Backbone) -> list[Row]:
    """Whether it takes the sizes that it says it takes."""
    if model.size is not None:
        return [Row("sizes", True, f"{model.size[0]} x {model.size[1]}")]
    asked = [model.padded(height, width) for height, width in SIZES]
    faults = [fault for size in asked if (fault := _fault(model, model.state_shape(*size), size))]
    if not faults:
        return [Row("sizes", True, " and ".join(f"{height} x {width}" for height, width in asked))]
    hint = _other_multiple(model) or "set the multiple that it needs, or size = (height, width) if it takes only one"
    return [Row("sizes", False, faults[0], hint)]


def _fault(model: Backbone, shape: Sequence[int], size: Sequence[int]) -> str:
    """What goes wrong with one state of that shape, of images of that size; "" where nothing does."""
    y = torch.linspace(-1, 1, math.prod(shape), device=working_device(model.device)).view(1, *shape)
    what = f"{size[0]} x {size[1]}"
    try:
        x0_hat = model(y, model.round_sigma(1.0))
    except Exception as error:
        return f"{what} fails: {said(error)}"
    if x0_hat.shape != y.shape:
        return f"{what} gives {list(x0_hat.shape)} for {list(y.shape)}"
    return "" if torch.isfinite(x0_hat).all() else f"{what} gives NaN or infinite values"


def _other_multiple(model: Backbone) -> str:
    """What to do where the model takes multiples of another number; "" where none that is tried works."""
    if model.size is not None or not model.on_pixels:
        return ""
    for k in MULTIPLES:
        asked = [(-(-height // k) * k, -(-width // k) * k) for height, width in SIZES]
        if k > model.multiple and not any(_fault(model, (model.channels, *size), size) for size in asked):
            return f"it takes multiples of {k}: set multiple = {k}"
    return ""


def _other_channels(model: Backbone, y: Tensor) -> str:
    """What to do where the model takes grey images for colour, or the other way round; "" where it does not."""
    other, size = 4 - model.channels, y.shape[2:]
    if not model.on_pixels or _fault(model, (other, *size), size):
        return ""
    return f"it takes images of {'1 channel' if other == 1 else '3 channels'}: set channels = {other}"


def pure_noise(model: Backbone, state: Tensor, noise: torch.Generator) -> list[Row]:
    """x0_hat of noise without a signal is about the mean image."""
    mse, nothing = (
        float((model(noisy(torch.zeros_like(state), 1.0, noise), math.inf) - state).square().mean()),
        power([state]),
    )
    ok = mse <= LIMIT * nothing
    do = "at sigma = inf denoise is given the noise itself in place of y: if it does not know that level, pure_noise = False"
    return [Row("pure noise", ok, f"{mse:.3g}, nothing {nothing:.3g}", "" if ok else do)]


def autoencoder(model: Backbone, x: Tensor, state: Tensor) -> list[Row]:
    """What encode and decode lose of images x [B, C, H, W] in [-1, 1], whose state is given."""
    do = "encode(images) takes and decode(x0) gives images in [-1, 1]: is the autoencoder for another range?"
    back = model.decode(state)
    if back.shape != x.shape:
        return [Row("autoencoder", False, f"decode gives {list(back.shape)} for {list(x.shape)}", do)]
    mse, variance = float((back - x).square().mean()), float((x - x.mean()).square().mean())
    ok = mse <= variance  # a grey image is better otherwise
    psnr = 10 * math.log10(4 / mse) if mse > 0 else math.inf
    return [Row("autoencoder", ok, f"encoded and decoded: {psnr:.1f} dB", "" if ok else do)]


def cost(model: Backbone, y: Tensor, weights: int) -> tuple[float, int | None, list[Row]]:
    """(seconds of a call with y [B, ...], bytes that it takes at its peak, None where nobody counts them, rows of both)."""
    sigma = model.round_sigma(1.0)

    def work() -> None:
        model(y, sigma)
        if y.is_cuda:
            torch.cuda.synchronize(y.device)

    peak = peak_bytes(work, y.device)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    seconds = sorted(times)[REPEATS // 2]
    found = f"{1000 * seconds:.3g} ms of {len(y)} on {model.device}, {1000 * seconds / len(y):.3g} ms per image"
    rest = "a call takes an unknown amount" if peak is None else f"a call takes {peak / 1e6:,.1f} MB"
    return seconds, peak, [Row("time", True, found), Row("memory", True, f"weights have {weights / 1e6:,.1f} MB, {rest}")]


def noisy(x: Tensor, sigma: float, noise: torch.Generator) -> Tensor:
    """x + sigma eps."""
    return x + sigma * torch.randn(x.shape, generator=noise).to(x)
