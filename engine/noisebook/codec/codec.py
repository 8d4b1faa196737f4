"""The public verbs of a codec: checks on the host, one call of the walk, one look at its status."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.backbones.realism import LazyRealism
from noisebook.backbones.wrappers.hosted import hosted
from noisebook.codebook import NOT_FINITE, Codebook
from noisebook.codec import packing
from noisebook.codec.checks import check, check_images, check_lost, check_tensor, check_tokens, check_weights, warn_of_stall
from noisebook.codec.decoder import decode
from noisebook.codec.encoder import encode
from noisebook.codec.lost import without
from noisebook.codec.realism import Dial, dial_for
from noisebook.codec.solvers import nfe_of
from noisebook.codec.stream import Layout, Stream, shortened, spec_for, stream_for
from noisebook.codec.tiles import network_for
from noisebook.codec.walk import Chooser, Parts, solve, walk
from noisebook.errors import CodecMismatchError, FormatError, ImageError, SpecError
from noisebook.format import container
from noisebook.format.cost import check_cost
from noisebook.rules import EFFORT, Bins, Rule
from noisebook.runtime.cuda_graphs import Graphs
from noisebook.runtime.devices import own_defaults, refuse_unreachable, working_device
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.runtime.profiler import stage
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex


class Codec:
    """A codec: its specification and the denoiser it names.

    Token tensors are int64 [B, L], ordered by (start, step, block, bin); `layout` says what each position is. A codec of a
    given size always gives the same number of tokens. On CUDA a whole encode or decode is one graph for each shape of
    batch, unless `graphs` is False or the backbone cannot be captured. Raises CodecMismatchError if `backbone` is not the
    one of `spec`, BackboneError if it has no fingerprint, SpecError if it cannot walk the schedule.

    Of encoders only: `effort` is how often the tokens of a step are chosen anew, by default once as in `noisebook.load`
    (rule `bins`, steps with more than one bit for 40 dimensions); `candidates` is how many sets of tokens are tried at each
    step, each for one network call (encoder.py).

    Of decoders only: `realism_network` is the file of what makes a picture convincing (None: the one that came with the
    backbone), which is read when `realism` above 0 is first asked for (codec/realism.py).
    """

    @own_defaults()
    def __init__(
        self,
        spec: CodecSpec,
        backbone: Backbone,
        graphs: bool = True,
        effort: int = EFFORT,
        candidates: int = 1,
        realism_network: str | Path | LazyRealism | None = None,
    ):
        check(spec, backbone)
        if not 1 <= candidates <= 64:
            raise SpecError(f"candidates must be from 1 to 64, not {candidates}")
        self.spec, self.backbone, self.candidates = spec, backbone, candidates
        self._realism = realism_network if isinstance(realism_network, LazyRealism) else LazyRealism(realism_network)
        self._how = (graphs, effort, candidates, self._realism)
        self.rule = rule_of(spec, effort)
        self.start_rule = Bins(Codebook(spec.codebook, spec.start_vocab_size, spec.seed), effort=0)
        self.graphs = Graphs(graphs and backbone.capturable, lambda: backbone.version)
        self._made: tuple[int, Backbone] | None = None
        #: (height, width) that `layout` and `decode` assume when none is given: the backbone's own, or 512 x 768
        self.default_size = backbone.native_size or (512, 768)

    def aliases(self) -> "Iterator[Codec]":
        """This codec, then the same under each other fingerprint that its backbone answers to: as a file or data set of an
        earlier noisebook calls it."""
        yield self
        for fingerprint in (self.backbone.fingerprint, *self.backbone.earlier_fingerprints()):
            if fingerprint != self.spec.fingerprint:
                yield Codec(replace(self.spec, fingerprint=fingerprint), self.backbone, *self._how)

    def as_recorded(self, spec: CodecSpec) -> "Codec":
        """The same codec as `spec` calls it, see `aliases`; itself where that is another codec."""
        if replace(self.spec, fingerprint=spec.fingerprint).hash != spec.hash:
            return self
        return next((codec for codec in self.aliases() if codec.spec.hash == spec.hash), self)

    @property
    def device(self) -> torch.device:
        """Where the work is done, and tokens and images are: where the backbone lives, or the host for a device on which
        codebooks are not searched (`mps`, `xpu`), which then runs the network only."""
        return working_device(self.backbone.device)

    @property
    def dtype(self) -> str:
        """What the network computes in, float32 or bfloat16 (`bfloat16-network`: but the autoencoder); tokens of one decode
        in the other."""
        return self.backbone.computes_in

    @property
    def parts(self) -> Parts:
        """What the walk takes of the codec."""
        return Parts(self.spec, hosted(self.backbone), self.rule, self.start_rule, self._network)

    def _network(self) -> Backbone:
        """What predicts for large pictures, made once for each state of the backbone's weights."""
        if self._made is None or self._made[0] != self.backbone.version:
            self._made = (self.backbone.version, network_for(hosted(self.backbone)))
        return self._made[1]

    def dial(self, realism: float, steps: int | None = None, tiled: bool = False) -> Dial | None:
        """What a decode of the first `steps` steps (None: all), perhaps of a large picture, does with the mean; None where
        `realism` is 0. Loads the realism network where there is one, and raises what `decode` raises of it."""
        backbone = self._network() if tiled and realism else self.backbone
        return dial_for(realism, self._realism, backbone, self.spec, steps)

    def spec_for(self, height: int, width: int) -> CodecSpec:
        """The specification of images of that size: the codec's own, but of a large picture, of more than 2^24 dimensions,
        one that cuts it in blocks, see `CodecSpec.cut`. Raises SpecError where the codec takes no such image."""
        return spec_for(self.spec, self.backbone, height, width)

    @property
    def nfe(self) -> int:
        """Network calls of a decode (number of function evaluations), those of the solver included."""
        return self.nfe_of(None)

    def nfe_of(self, steps: int | None, realism: float = 0.0) -> int:
        """Network calls of a decode of the first `steps` steps, with what `realism` above 0 adds, see `decode`."""
        dial = self.dial(realism, steps)
        return nfe_of(self.spec, steps) + (dial.calls if dial else 0)

    @property
    def encode_nfe(self) -> int:
        """Network calls of an encode, without what it takes to see the result."""
        if self.candidates == 1:
            return self.spec.coded_steps
        return self.candidates * (len(self.spec.schedule) + (self.spec.sigma_last > 0))

    # ---- sizes and layouts ----------------------------------------------------------------------------------------------
    def stream(self, height: int, width: int) -> Stream:
        """What the codec does with images of that size. Raises SpecError if tokens or blocks do not fit it."""
        return stream_for(self.spec, self.backbone, self.rule, self.start_rule, height, width)

    @own_defaults()
    def layout_for(self, height: int, width: int) -> Layout:
        """Step, block, bin and vocab_size of every token position for images of that size."""
        return self.stream(height, width).layout()

    @property
    def layout(self) -> Layout:
        """`layout_for` the default size."""
        return self.layout_for(*self.default_size)

    # ---- encode ---------------------------------------------------------------------------------------------------------
    @own_defaults()
    def encode(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], uint8 or float32 in [-1, 1] -> tokens int64 [B, L] on the codec's device.

        weights  float [B or 1, 1, H, W] >= 0: what an error at each pixel counts; tokens go where it counts more. A decoder
                 need not know them (Turbo-DDCM's priority maps).
        Raises ImageError for other shapes, dtypes or values that are not finite.
        """
        return self._encode(images, weights)[0]

    @own_defaults()
    def reconstruct(self, images: Tensor, weights: Tensor | None = None, realism: float = 0.0) -> tuple[Tensor, Tensor]:
        """(tokens, images): what `encode` gives and what `decode` will make of it, in one walk. `realism` is as of `decode`
        and changes no token."""
        tokens, decoded, _ = self._encode(images, weights, with_images=True, realism=realism)
        return tokens, decoded

    @own_defaults()
    def trace(self, images: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, dict[int, float]]:
        """`reconstruct`, and the mean squared error of x0_hat, a dimension of the state, before the tokens of each step."""
        tokens, decoded, errors = self._encode(images, weights, with_images=True)
        steps = (int(s.step_index) for s in self.stream(*images.shape[2:]).segments)
        steps = dict.fromkeys(step for step in steps if step >= StepIndex.START)
        return tokens, decoded, dict(zip(steps, errors.mean(0).tolist(), strict=True))

    @own_defaults()
    def encode_packed(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """As `encode`, but packed as in a file: uint8 [B, bytes], row by row `container.pack` of the tokens.

        Packed on the device, unless a vocab_size is not a power of two or the rule has its own code. Raises SpecError
        for several images under a rule whose payloads differ in length (`poisson`): pack their tokens one by one."""
        check_tensor(images, "images", ImageError)
        if self._packs_on_device:
            return self._encode(images, weights, packed=True)[0]
        if not self.rule.fixed_length and len(images) > 1:
            raise SpecError(
                f"payloads of rule {self.spec.rule} differ in length: encode, then container.pack each image's tokens"
            )
        tokens, runs = self.encode(images, weights).cpu().numpy(), self.stream(*images.shape[2:]).runs
        rows = [np.frombuffer(container.pack(row, runs), np.uint8) for row in tokens]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def _encode(
        self,
        images: Tensor,
        weights: Tensor | None = None,
        with_images: bool = False,
        packed: bool = False,
        realism: float = 0.0,
    ) -> list[Tensor]:
        images = check_images(images, self.backbone.channels, self.device)
        stream = self.stream(*images.shape[2:])
        if stream.tiled and self.candidates > 1:
            raise SpecError("an image of more than 2^24 dimensions is encoded with 1 candidate only")
        if stream.tiled and len(images) > 1:  # one by one: each has resolutions of its own
            parts = weights.split(1) if weights is not None and len(weights) > 1 else [weights] * len(images)
            each = zip(images.split(1), parts, strict=True)
            found = [self._encode(x, w, with_images, packed, realism) for x, w in each]
            return [torch.cat(column) for column in zip(*found, strict=True)]
        given = (images,) if weights is None else (images, check_weights(weights, images, self.device))
        parts = replace(self.parts, dial=self.dial(realism, None, stream.tiled))
        arguments = (parts, self.candidates, stream, with_images, packed)
        (in_range, finite, *errors), *out = self._run("encode", encode, arguments, given, record=not stream.tiled)
        if not in_range:
            raise ImageError("float images must be finite and in [-1, 1]; uint8 images are scaled for you")
        if not finite:
            raise ImageError(NOT_FINITE)
        warn_of_stall(errors)
        return [*out, torch.tensor([errors])]

    # ---- decode ---------------------------------------------------------------------------------------------------------
    @own_defaults()
    def decode(
        self,
        tokens: Tensor,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        realism: float = 0.0,
        lost: Tensor | None = None,
    ) -> Tensor:
        """Tokens [B, L] of any integer dtype -> images float32 [B, C, H, W], about in [-1, 1]; `size` is (H, W), default
        `default_size`.

        steps  only the first steps of the schedule, then the solver from there: what the beginning of the stream says. The
               tokens of later steps are not needed. Of a codec without steps: steps of the solver, even in the time of a
               rectified flow; with a CoD 25 for realism, 1 for the least error
        realism  from 0, the mean, which has the least error, to 1, a convincing picture: by one more call of a realism
               network, or where there is none for the backbone by three more of the backbone, Euler steps of its ODE.
               Between, (1 - realism) mean + realism convincing (codec/realism.py). Needs the solver `mean`
        lost   bool [B, L]: tokens that are known to be wrong, whatever stands there. Their atoms are skipped and the levels
               follow (codec/lost.py); rule `bins` only, image by image
        Any tokens inside their vocabulary decode. Raises CodecMismatchError if L or a token does not fit the layout,
        SpecError for more steps than there are, for another realism than 0 ... 1 and where the solver is not `mean`, and for
        tokens that cannot be lost; BackboneError where the realism network that the user named is not for the backbone.
        """
        check_tensor(tokens, "tokens", CodecMismatchError)
        stream = shortened(self.stream(*(size or self.default_size)), self.spec, steps)
        check_lost(lost, tokens)
        if steps is not None and tokens.ndim == 2:
            tokens, lost = tokens[:, : stream.length], None if lost is None else lost[:, : stream.length]
        check_tokens(tokens, stream.length, stream.height, stream.width)
        tokens = tokens.to(torch.int64)  # one that is too large for it becomes negative, and is outside of its vocabulary
        valid, decoded = self._decode(stream, tokens, realism, lost)
        if not valid:
            raise CodecMismatchError("a token is outside its vocabulary: the tokens are of another codec")
        return decoded

    @own_defaults()
    def decode_packed(
        self,
        payload: Tensor,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        limits: Limits = DEFAULT,
        realism: float = 0.0,
    ) -> Tensor:
        """What `decode` makes of the tokens in payloads of `encode_packed`, uint8 [B, bytes], unpacked on the device if
        they are packed there. Raises FormatError for another length, for bits that no tokens pack to, and where a payload
        is more work to unpack than `limits` allow."""
        check_tensor(payload, "payloads", CodecMismatchError)
        stream = self.stream(*(size or self.default_size))
        if payload.ndim == 2:
            check_cost(payload.shape[1], stream.runs, limits)
        length = -(-container.packed_bits(stream.runs) // 8) if self.rule.fixed_length else None
        if payload.ndim != 2 or payload.dtype != torch.uint8 or length not in (None, payload.shape[1]):
            took = f"{payload.dtype} {list(payload.shape)}"
            raise FormatError(
                f"this codec takes payloads of {length or 'some'} bytes for images of {stream.height} x "
                f"{stream.width}, not {took}: damaged, or of another codec"
            )
        if not self._packs_on_device:
            rows = [container.unpack(row.tobytes(), stream.runs, limits) for row in payload.cpu().numpy()]
            return self.decode(torch.from_numpy(np.stack(rows)), size, steps, realism)
        if steps is not None:
            return self.decode(packing.unpack(payload.to(self.device), stream.runs)[0], size, steps, realism)
        valid, decoded = self._decode(stream, payload, realism)
        if not valid:
            raise FormatError("padding bits are not zero: the file is damaged")
        return decoded

    def _decode(self, stream: Stream, given: Tensor, realism: float, lost: Tensor | None = None) -> tuple[bool, Tensor]:
        if (stream.tiled or lost is not None) and len(given) > 1:
            masks = [None] * len(given) if lost is None else lost.split(1)
            found = [self._decode(stream, row, realism, mask) for row, mask in zip(given.split(1), masks, strict=True)]
            return all(valid for valid, _ in found), torch.cat([decoded for _, decoded in found])
        parts = replace(self.parts, dial=self.dial(realism, stream.steps, stream.tiled))
        if lost is not None:
            parts, given = without(parts, stream, given.to(self.device), lost.to(self.device))
        recorded = not stream.tiled and lost is None  # levels differ from image to image, and a graph has its own
        valid, decoded = self._run("decode", decode, (parts, stream), (given,), recorded)
        return bool(valid), decoded

    @own_defaults()
    @torch.no_grad()
    def walk(self, stream: Stream, batch: int, choose: Chooser) -> Tensor:
        """The images [B, C, H, W] at the end of a walk whose tokens `choose` names, see `noisebook.codec.walk`."""
        refuse_unreachable(self.backbone.device)
        if stream.tiled:
            raise SpecError("images of more than 2^24 dimensions are encoded and decoded only: choose a smaller size")
        y, cond = walk(self.parts, stream, batch, choose, len(self.spec.schedule))
        return solve(self.parts, stream, y, cond)

    @property
    def _packs_on_device(self) -> bool:
        """Whether each token is a whole number of bits."""
        return self.rule.whole_bits and all(v & (v - 1) == 0 for v in (self.spec.vocab_size, self.spec.start_vocab_size))

    @torch.no_grad()
    def _run(
        self,
        name: str,
        function: Callable[..., tuple[Tensor, ...]],
        arguments: tuple[Hashable, ...],
        tensors: tuple[Tensor, ...],
        record: bool = True,
    ) -> list:
        """function(*arguments, *tensors), as a CUDA graph where there is one to be had: its status as a list of numbers,
        then its tensors."""
        refuse_unreachable(self.backbone.device)
        with stage(name):
            there = tuple(tensor.to(self.device) for tensor in tensors)
            status, *out = self.graphs(function, arguments, there) if record else function(*arguments, *there)
            return [status.tolist(), *out]  # the one time that the host waits for the device


def rule_of(spec: CodecSpec, effort: int = EFFORT) -> Rule:
    """The rule of a specification, encoding with `effort`."""
    return spec.rule_type(Codebook(spec.codebook, spec.vocab_size, spec.seed), effort, spec.coefficient_bits)


__all__ = ["Codec"]
