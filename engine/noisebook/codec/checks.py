"""What a codec refuses before it works, and what it warns of after."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisebook.backbones import Backbone, shipped
from noisebook.backbones.base import no_fingerprint
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.backbones.wrappers.ranged import Ranged
from noisebook.codec.stream import Stream
from noisebook.errors import BackboneError, CodecMismatchError, FormatError, ImageError, NoisebookError, SpecError, printable
from noisebook.format import container
from noisebook.format.cost import check_cost
from noisebook.runtime.limits import Limits
from noisebook.spec.spec import CodecSpec, identity_fault

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
NO_NUMBERS = "float images must be finite: these have NaN or infinite values"
TOKEN_DTYPES = tuple(getattr(torch, name) for name in INTEGERS)  # that `decode` takes: of tokens as data sets hold them


def check_tensor(value: Any, name: str, error: type[NoisebookError]) -> None:
    """Raises `error` for what is no tensor."""
    if not isinstance(value, Tensor):
        raise _no_tensor(value, name, error)


def _no_tensor(value: Any, name: str, error: type[NoisebookError]) -> NoisebookError:
    kind = type(value).__name__
    return error(f"{name} must be a torch tensor, not {kind}: torch.from_numpy(array) makes one of an array")


def check_images(images: Any, channels: int, device: torch.device) -> Tensor:
    """The images on the device, uint8 or float32. The walk sees there whether floats are in range. Raises ImageError."""
    check_tensor(images, "images", ImageError)
    if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape:
        hint = f" (the backbone's `channels` is {channels})" if images.ndim == 4 and 0 not in images.shape else ""
        raise ImageError(f"images must be [B, {channels}, H, W] and not empty, not {list(images.shape)}{hint}")
    if images.dtype == torch.uint8:
        return images.to(device)
    if not images.is_floating_point():
        raise ImageError(f"images must be uint8, or float in [-1, 1], not {images.dtype}")
    if images.device.type == "cpu" and not torch.isfinite(images).all():  # on a GPU that would wait for an answer
        raise ImageError(NO_NUMBERS)
    return images.to(device, torch.float32)


def check_weights(weights: Any, images: Tensor, device: torch.device) -> Tensor:
    """What an error at each pixel of the images counts, on the device, float32. Raises ImageError."""
    check_tensor(weights, "weights", ImageError)
    shape = (len(images), 1, *images.shape[2:])
    if not weights.is_floating_point() or weights.shape not in (shape, (1, *shape[1:])):
        raise ImageError(f"weights must be float {list(shape)}, one a pixel, not {weights.dtype} {list(weights.shape)}")
    if not torch.isfinite(weights).all() or weights.min() < 0 or weights.max() <= 0:
        raise ImageError("weights must be finite, 0 or above, and somewhere above 0")
    return weights.to(device, torch.float32)


def as_tensor(tokens: Any) -> Tensor:
    """Tokens as a tensor: numpy's arrays of integers are copied. Raises CodecMismatchError for what is neither."""
    if isinstance(tokens, Tensor):
        return tokens
    if isinstance(tokens, np.ndarray) and tokens.dtype.name in INTEGERS:
        return torch.from_numpy(tokens.astype(tokens.dtype.newbyteorder("="), order="C"))
    if isinstance(tokens, list | tuple) and any(isinstance(item, Tensor | np.ndarray) for item in tokens):
        raise CodecMismatchError(
            f"tokens are one tensor or array [B, L], and not a {type(tokens).__name__} of {len(tokens)}: decode them one by "
            "one, each with the size of its image, or join those of one size with torch.cat"
        )
    raise _no_tensor(tokens, "tokens", CodecMismatchError)


def check_tokens(tokens: Tensor, length: int, height: int, width: int) -> None:
    """Raises CodecMismatchError for tokens that are no integers [B, length]."""
    if tokens.ndim != 2 or tokens.dtype not in TOKEN_DTYPES or tokens.shape[1] != length:
        raise CodecMismatchError(
            f"this codec takes integer tokens [B, {length}] for images of {height} x {width}, not {tokens.dtype} "
            f"{list(tokens.shape)}"
        )


def check_payload(payload: Tensor, stream: Stream, fixed_length: bool, limits: Limits) -> None:
    """Raises FormatError for what are no payloads uint8 [B, bytes] of that stream, or more work than `limits` allow."""
    if payload.ndim == 2:
        check_cost(payload.shape[1], stream.runs, limits)
    length = -(-container.packed_bits(stream.runs) // 8) if fixed_length else None
    if payload.ndim != 2 or payload.dtype != torch.uint8 or length not in (None, payload.shape[1]):
        raise FormatError(
            f"this codec takes payloads of {length or 'some'} bytes for images of {stream.height} x {stream.width}, not "
            f"{payload.dtype} {list(payload.shape)}: damaged, or of another codec"
        )


def check_dtype(dtype: Any) -> None:
    """Raises SpecError for another dtype of decoded images than there is."""
    if dtype not in ("float32", "uint8"):
        raise SpecError(f'images are decoded to dtype "float32" or "uint8", not {printable(repr(dtype), 60)}')


def check_lost(lost: Any, tokens: Tensor) -> None:
    """Raises CodecMismatchError for a mask of lost tokens that is not theirs; None is no mask."""
    if lost is None:
        return
    check_tensor(lost, "lost", CodecMismatchError)
    if lost.dtype != torch.bool or lost.shape != tokens.shape:
        raise CodecMismatchError(f"lost must be bool {list(tokens.shape)}, one a token, not {lost.dtype} {list(lost.shape)}")


def check_backbone(backbone: Any) -> None:
    """Raises BackboneError for what is no Backbone: a plain network, a function, a path."""
    if not isinstance(backbone, Backbone):
        raise BackboneError(
            f"a codec needs the name of a backbone or a noisebook.backbones.Backbone, not {type(backbone).__name__}: derive "
            "a class from it with denoise(y, sigma), see docs/backbones.md"
        )


def check(spec: CodecSpec, backbone: Backbone) -> None:
    """Raises what `Codec` raises where the backbone is not the one of the specification, or cannot walk its schedule."""
    check_backbone(backbone)
    if not backbone.fingerprint:
        raise BackboneError(f"backbone {printable(backbone.name, 100)!r} has no fingerprint: {no_fingerprint()}")
    if reason := identity_fault(backbone.name, backbone.fingerprint):
        raise BackboneError(f"{reason}: noisebook.backbones.fingerprint_of({{}}, net.state_dict()) makes a fingerprint")
    if not backbone.answers_to(spec.fingerprint):
        raise CodecMismatchError(
            f"the codec needs backbone {spec.backbone!r} ({spec.fingerprint[:16]}), not {backbone.name!r} "
            f"({backbone.fingerprint[:16]}){_why(spec.backbone, backbone)}"
        )
    if spec.sigma_first == math.inf and not backbone.pure_noise:
        raise SpecError(f"backbone {backbone.name!r} knows no pure noise: begin at a finite sigma")
    if spec.condition and spec.condition != backbone.condition_grid:
        raise SpecError(
            f"backbone {backbone.name!r} has no condition tokens of {spec.condition}, but "
            f"{backbone.condition_grid or 'none'}"
        )
    for sigma in [s.sigma for s in spec.schedule] + [v for v in spec.solver_levels if v > 0]:
        known = backbone.round_sigma(sigma)
        if known != sigma:
            raise SpecError(f"backbone {backbone.name!r} has no level sigma = {sigma}; nearest: {known}")


def _why(wanted: str, backbone: Backbone) -> str:
    """What has likely made another backbone of one that goes by the name of `backbone`."""
    conditions = "prompt, negative prompt, guidance, label or variant"
    if not _takes_conditions(backbone):
        differ = "its weights, its configuration or its Ranged differ from those that the file was made with"
        return f": {differ}" if wanted == backbone.name else f"; if it is the same model under a new name, {differ}"
    if wanted == backbone.name:
        return f": most likely it was loaded under another {conditions} than the file was made with; or its weights changed"
    return "" if backbone.name in shipped() else f"; if it is the same model under a new name, its {conditions} may differ"


def _takes_conditions(backbone: Backbone) -> bool:
    """Whether it may have been loaded under conditions: not where a factory or a class of the user's own made it, or where
    it is in a `Ranged`, which nothing that is found by a name is."""
    inner = backbone
    while isinstance(inner, Wrapper):
        if isinstance(inner, Ranged) or inner.factory:
            return False
        inner = inner.inner
    return not inner.factory and type(inner).__module__.partition(".")[0] == "noisebook"


def warn_of_stall(errors: list[float]) -> None:
    """The paper's sign of a codebook too small: late tokens no longer bring the prediction nearer."""
    if len(errors) < 8:
        return
    first, middle, last = errors[1], errors[len(errors) // 2], errors[-1]
    if last > 0.95 * middle and last > 0.1 * first:
        warnings.warn(
            "quality stalls: the second half of the tokens hardly improved the prediction; use a larger "
            "vocabulary or a larger budget, or end at another level",
            RuntimeWarning,
            stacklevel=4,
        )
