"""What a backbone is: one function x0_hat = D(y, sigma), the sizes it takes, and a fingerprint of its weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.grid import Grid, probed
from noisebook.errors import BackboneError, ImageError, printable

NETWORK_ONLY = "bfloat16-network"  # bfloat16, but the autoencoder of a latent model, see wrappers/latent.py, in float32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, NETWORK_ONLY: torch.bfloat16}  # that a network runs in
AS_IT_IS = {"dtype": "float32", "channels_last": False, "compile": False}  # arguments of `accelerate` that change nothing


def network_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """What a network runs in under that argument of `accelerate`. Raises BackboneError for one that it does not know."""
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if kind is None or kind not in DTYPES.values():
        raise BackboneError(f"a network runs in {', '.join(DTYPES)}, not {printable(dtype, 60)}")
    return kind


@dataclass(frozen=True)
class Description:
    """What describes a backbone, as one value. Each field is an attribute of `Backbone`, whose comment says what it is.

    A wrapper copies the record whole and replaces what it changes, so that no field is dropped on the way.
    """

    name: str
    channels: int
    multiple: int
    size: tuple[int, int] | None
    fingerprint: str
    pure_noise: bool
    capturable: bool
    condition_grid: tuple[int, int, int] | None
    unfingerprinted_options: tuple[str, ...]


class Backbone(nn.Module):
    """Base of all adapters. `y = x0 + sigma * eps` in noise-to-signal coordinates, whatever the model's family uses itself.

    A subclass sets those of the attributes below that differ, on the class or on an instance, and implements `denoise`. A
    latent one also implements `encode`, `decode` and `state_shape`; one with a `condition_grid` also `encode_condition` and
    `condition`. A backbone around another one is a `wrappers.base.Wrapper`.
    """

    name: str = "unnamed"  # what a codec's specification calls it
    channels: int = 3  # of the images: 3 (RGB) or 1 (grey)
    multiple: int = 1  # height and width of the images it takes are multiples of this
    size: tuple[int, int] | None = None  # the only (height, width) it takes; None: any
    fingerprint: str = ""  # SHA-256 over weights and config, see `fingerprint_of`
    pure_noise: bool = False  # knows sigma = inf, see `denoise`
    capturable: bool = True  # `denoise` can be recorded as a CUDA graph: see docs/performance.md
    # of a model with tokens of its own, which `encode_condition` makes and `condition` reads: (pixels per token on each
    # axis, how many values a token has, what heights and widths are a multiple of)
    condition_grid: tuple[int, int, int] | None = None
    # options of `load` that are not in the fingerprint: they change no token, or are paths
    unfingerprinted_options: tuple[str, ...] = ()
    factory: str = ""  # MODULE:FACTORY that made it, where a user typed that: see factory.py
    auto_bfloat16: tuple[str, ...] = ()  # kinds of device on which the dtype `auto` may be bfloat16: see precision.py
    acceleration: Mapping[str, Any] = AS_IT_IS  # arguments of the last `accelerate`: what works beside it computes alike

    _moves: int = 0  # how often weights of its own moved or changed their type
    # (a fingerprint, the one that an earlier noisebook gave the same model, or what makes it)
    _earlier: tuple[str, str | Callable[[], str]] | None = None

    @property
    def description(self) -> Description:
        """The attributes above as one frozen record; assigning a record sets them all."""
        return Description(**{field.name: getattr(self, field.name) for field in fields(Description)})

    @description.setter
    def description(self, description: Description) -> None:
        for name, value in vars(description).items():
            setattr(self, name, value)

    @property
    def version(self) -> int:
        """Grows when weights move or change their type: a CUDA graph holds the addresses of the old ones."""
        return self._moves

    def identify_as(self, fingerprint: str, earlier: Callable[[], str]) -> None:
        """Sets the fingerprint. `earlier` makes the one that an earlier noisebook gave the same model, when it is needed."""
        self.fingerprint, self._earlier = fingerprint, (fingerprint, earlier)

    def earlier_fingerprints(self) -> tuple[str, ...]:
        """Those that stand for the same model in files of an earlier noisebook. The first call makes them, which may read
        all weights once more; raises BackboneError where the files have changed since they were read."""
        if self._earlier is None or self._earlier[0] != self.fingerprint:  # of other weights: somebody has changed them
            return ()
        known, earlier = self._earlier
        if not isinstance(earlier, str):
            earlier = earlier()
            self._earlier = known, earlier
        return (earlier,)

    def answers_to(self, fingerprint: str) -> bool:
        """Whether a file with that fingerprint was made with this model: it is its own, or else one of the earlier ones."""
        return fingerprint == self.fingerprint or fingerprint in self.earlier_fingerprints()

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, *state_shape] float32 at noise-to-signal ratio sigma > 0 -> the prediction x0_hat, same shape and dtype.

        At sigma = inf, which only a model with `pure_noise` is given, y holds the noise eps itself: x_t has no signal there.
        For a CUDA graph it reads nothing back from the device and copies nothing to it: `torch.full`, not `torch.tensor`.
        """
        raise NotImplementedError

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        """As `denoise`, with one level per image: sigma [B], on y's device. A model may do without; a view needs it."""
        raise BackboneError(f"backbone {self.name!r} has no denoise_each(y, sigma [B])")

    @property
    def has_denoise_each(self) -> bool:
        """Whether it implements `denoise_each`."""
        return type(self).denoise_each is not Backbone.denoise_each

    def forward(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        return self.denoise(y, sigma, cond)

    def accelerate(
        self, dtype: torch.dtype | str = torch.float32, channels_last: bool = False, compile: bool = False
    ) -> "Backbone":
        """Changes, in place, how the network computes, and the autoencoder of a latent model: weights and activations in
        `dtype` (float32 or bfloat16, cast once; load again to go back), convolutions channels-last, code through
        torch.compile. Under the dtype "bfloat16-network" the autoencoder stays float32. Returns itself.

        y, sigma, x0_hat and images stay float32, and the fingerprint the same: tokens of one precision decode in another,
        with a loss. Raises BackboneError where there is no network, or for another dtype.
        """
        self._accelerate(network_dtype(dtype), channels_last, compile)
        self.acceleration = {"dtype": dtype, "channels_last": channels_last, "compile": compile}
        self._moves += 1
        return self

    @property
    def accelerated_to(self) -> str:
        """The dtype that `accelerate` was last given; float32 where it was not called, whatever the weights are."""
        return str(self.acceleration["dtype"]).removeprefix("torch.")

    @property
    def computes_in(self) -> str:
        """What its network computes in: the dtype that `accelerate` was last given, or where that is float32 the type of
        its first weights: of some models it is bfloat16 from the beginning, and without weights float32."""
        if self.accelerated_to != "float32":
            return self.accelerated_to
        kind = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        return str(kind).removeprefix("torch.")

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        raise BackboneError(f"backbone {self.name!r} has no network to run in another precision or layout, or compiled")

    def _apply(self, fn: Any, recurse: bool = True) -> "Backbone":  # behind .to(), .cuda(), .half() and the like
        self._moves += 1
        return super()._apply(fn, recurse)

    def round_sigma(self, sigma: float) -> float:
        """The level nearest to sigma that the model knows (discrete-time models); sigma itself otherwise."""
        return sigma

    def own_grid(self) -> Grid | None:
        """The levels of a discrete-time model and how its own sampler takes them: what the spacing `own` is made of; None of
        a model of continuous time. As far as `round_sigma` tells, unless a subclass knows more."""
        levels = probed(self.round_sigma)
        return Grid(levels) if levels else None

    @property
    def device(self) -> torch.device:
        """Where its weights live; the CPU where it has none."""
        tensor = next(self.parameters(), None)
        tensor = tensor if tensor is not None else next(self.buffers(), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def native_size(self) -> tuple[int, int] | None:
        """The (height, width) it was made for, if it was made for one."""
        return self.size

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest (height, width) it takes that holds such an image. Raises ImageError where none does."""
        if self.size is not None:
            if height > self.size[0] or width > self.size[1]:
                raise ImageError(
                    f"backbone {self.name!r} takes {self.size} pixels only, not {(height, width)}: put it in a "
                    "noisebook.backbones.wrappers.tiled.Tiled, which takes larger images"
                )
            return self.size
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [C, h, w] of the diffusion state for an image of that (already padded) size."""
        return (self.channels, height, width)

    def encode_condition(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1], already padded -> the condition's tokens int64 [B, h, w]."""
        raise NotImplementedError

    def condition(self, tokens: Tensor, height: int, width: int) -> Any:
        """The condition's tokens int64 [B, h w] of images of that (already padded) size -> the `cond` of `denoise`."""
        raise NotImplementedError

    def guided(self, cond: Any) -> Any:
        """The `cond` that an ODE solver uses in place of `condition`'s: with guidance, where a model has any."""
        return cond

    @property
    def on_pixels(self) -> bool:
        """Whether the state is the image itself, and not a code of it."""
        return type(self).encode is Backbone.encode and type(self).decode is Backbone.decode

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] -> the state x0. The identity for pixel models."""
        return images

    def decode(self, x0: Tensor) -> Tensor:
        """The state x0 -> images [B, C, H, W] float32, about in [-1, 1]. The identity for pixel models."""
        return x0


def accelerate(backbone: Backbone, how: Mapping[str, Any]) -> Backbone:
    """`backbone.accelerate(**how)`; where that would change nothing, not even asked of a backbone without a network."""
    return backbone if {**AS_IT_IS, **how} == AS_IT_IS else backbone.accelerate(**how)


def identify(
    backbone: Backbone,
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> None:
    """Names a backbone after its file, and gives it the fingerprint of all that it was made of: the file's config and
    tensors, those of the `options` that change tokens, and what its builder left in `fingerprint`."""
    header = {"kind": kind, "config": config}
    header |= {name: value for name, value in options.items() if name not in backbone.unfingerprinted_options}
    if backbone.fingerprint:
        header["behind"] = backbone.fingerprint
    backbone.name, backbone.fingerprint = path.stem, fingerprint_of(header, tensors)


def no_fingerprint() -> str:
    """What a fingerprint is for, and how a backbone gets one: the end of a message about one that has none."""
    return (
        "it says in every file which weights made it, so that other weights are refused: set backbone.fingerprint = "
        'noisebook.backbones.fingerprint_of({"kind": "mine"}, net.state_dict())'
    )


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over the config's canonical JSON and the sorted (name, dtype, shape, bytes) of all tensors."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
