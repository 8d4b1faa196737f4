"""What runs a codec's walks: its parts, one call of the encoder or decoder, one look at its status."""

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.backbones.realism import LazyRealism
from noisebook.backbones.wrappers.hosted import hosted
from noisebook.codebook import NOT_FINITE, Codebook
from noisebook.codec.checks import check, check_weights, warn_of_stall
from noisebook.codec.decoder import decode
from noisebook.codec.encoder import encode
from noisebook.codec.inputs import PictureReader, out_of_range
from noisebook.codec.lost import without
from noisebook.codec.realism import Dial, dial_for
from noisebook.codec.solvers import nfe_of
from noisebook.codec.stream import Layout, Stream, stream_for
from noisebook.codec.tiles import network_for
from noisebook.codec.walk import Parts
from noisebook.errors import ImageError, SpecError
from noisebook.rules import EFFORT, Bins, Rule
from noisebook.runtime.cuda_graphs import Graphs
from noisebook.runtime.devices import own_defaults, refuse_unreachable, working_device
from noisebook.runtime.profiler import stage
from noisebook.runtime.progress import Progress, Tell
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec


class Engine:
    """A specification, its backbone and its rules, and the walks with them. `Codec` has the verbs."""

    @own_defaults()
    def __init__(
        self,
        spec: CodecSpec,
        backbone: Backbone,
        graphs: bool = True,
        effort: int = EFFORT,
        candidates: int = 1,
        realism_network: str | Path | LazyRealism | None = None,
        read_picture: PictureReader | None = None,
    ):
        check(spec, backbone)
        if not 1 <= candidates <= 64:
            raise SpecError(f"candidates must be from 1 to 64, not {candidates}")
        self.spec, self.backbone, self.candidates = spec, backbone, candidates
        self._realism = realism_network if isinstance(realism_network, LazyRealism) else LazyRealism(realism_network)
        self._read_picture = read_picture
        self._how = (graphs, effort, candidates, self._realism, read_picture)
        self.rule = rule_of(spec, effort)
        self.start_rule = Bins(Codebook(spec.codebook, spec.start_vocab_size, spec.seed), effort=0)
        self.graphs = Graphs(graphs and backbone.capturable, lambda: backbone.version)
        self._made: tuple[int, Backbone] | None = None
        #: (height, width) that `layout` and `decode` assume when none is given: what `noisebook.load` aimed at, the
        #: backbone's own, or 512 x 768
        self.default_size = backbone.native_size or presets.SIZE

    @property
    def device(self) -> torch.device:
        """Where the work is done, and tokens and images are: where the backbone lives, or the host for a device on which
        codebooks are not searched (`mps`, `xpu`), which then runs the network only."""
        return working_device(self.backbone.device)

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

    def _calls_of_decode(self, steps: int | None, realism: float, tiled: bool = False) -> int:
        """Network calls of a decode of the first `steps` steps (None: all), perhaps of a large picture."""
        dial = self.dial(realism, steps, tiled)
        return nfe_of(self.spec, steps) + (dial.calls if dial else 0)

    @property
    def _calls_of_encode(self) -> int:
        """Network calls of an encode, of which each has all `candidates`."""
        ahead = self.candidates > 1  # it also predicts what the last step leaves
        return len(self.spec.schedule) + (self.spec.sigma_last > 0) if ahead else self.spec.coded_steps

    def stream(self, height: int, width: int) -> Stream:
        """What the codec does with images of that size. Raises SpecError if tokens or blocks do not fit it."""
        return stream_for(self.spec, self.backbone, self.rule, self.start_rule, height, width)

    @own_defaults()
    def layout_for(self, height: int, width: int) -> Layout:
        """Step, block, bin and vocab_size of every token position for images of that size."""
        return self.stream(height, width).layout()

    # ---- walks ----------------------------------------------------------------------------------------------------------
    def _encode(
        self,
        images: Tensor,
        weights: Tensor | None = None,
        with_images: bool = False,
        packed: bool = False,
        realism: float = 0.0,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Of images as `inputs.py` leaves them: [tokens or payloads, the decoded images if `with_images`, errors]."""
        images = images.to(self.device)
        stream = self.stream(*images.shape[2:])
        if stream.tiled and self.candidates > 1:
            raise SpecError("an image of more than 2^24 dimensions is encoded with 1 candidate only")
        if stream.tiled and len(images) > 1:  # one by one: each has its own resolutions
            parts = weights.split(1) if weights is not None and len(weights) > 1 else [weights] * len(images)
            each = zip(images.split(1), parts, strict=True)
            found = [self._encode(x, w, with_images, packed, realism, progress) for x, w in each]
            return [torch.cat(column) for column in zip(*found, strict=True)]
        given = (images,) if weights is None else (images, check_weights(weights, images, self.device))
        parts = replace(self.parts, dial=self.dial(realism, None, stream.tiled))
        arguments = (parts, self.candidates, stream, with_images, packed)
        (in_range, finite, *errors), *out = self._run("encode", encode, arguments, given, not stream.tiled, progress)
        if not in_range:
            raise ImageError(out_of_range(images))
        if not finite:
            raise ImageError(NOT_FINITE)
        warn_of_stall(errors)
        return [*out, torch.tensor([errors])]

    def _decode(
        self, stream: Stream, given: Tensor, realism: float, lost: Tensor | None = None, progress: Progress | None = None
    ) -> tuple[bool, Tensor]:
        if (stream.tiled or lost is not None) and len(given) > 1:
            masks = [None] * len(given) if lost is None else lost.split(1)
            rows = zip(given.split(1), masks, strict=True)
            found = [self._decode(stream, row, realism, mask, progress) for row, mask in rows]
            return all(valid for valid, _ in found), torch.cat([decoded for _, decoded in found])
        parts = replace(self.parts, dial=self.dial(realism, stream.steps, stream.tiled))
        if lost is not None:
            parts, given = without(parts, stream, given.to(self.device), lost.to(self.device))
        recorded = not stream.tiled and lost is None  # levels differ from image to image, and a graph has its own
        valid, decoded = self._run("decode", decode, (parts, stream), (given,), recorded, progress)
        return bool(valid), decoded

    def _encoding(self, tell: Tell | None, batches: list[Tensor]) -> Progress | None:
        """What counts the calls of encodes of these batches for `tell`."""
        if tell is None:
            return None
        return Progress(tell, self._calls_of_encode, sum(len(x) if self.stream(*x.shape[2:]).tiled else 1 for x in batches))

    def _decoding(self, tell: Tell | None, stream: Stream, batch: int, realism: float, apart: bool) -> Progress | None:
        """What counts the calls of a decode for `tell`; `apart`: whether images are decoded one by one in any case."""
        if tell is None:
            return None
        calls = self._calls_of_decode(stream.steps, realism, stream.tiled)
        return Progress(tell, calls, batch if stream.tiled or apart else 1)

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
        progress: Progress | None = None,
    ) -> list:
        """function(*arguments, *tensors), as a CUDA graph where there is one to be had: its status as a list of numbers,
        then its tensors. `progress` counts network calls one by one where there is no graph."""
        refuse_unreachable(self.backbone.device)
        with stage(name):
            there = tuple(tensor.to(self.device) for tensor in tensors)
            plain = not (record and self.graphs.enabled and self.graphs.takes(there))
            with nullcontext() if progress is None else progress.run(plain):
                status, *out = self.graphs(function, arguments, there) if record else function(*arguments, *there)
                return [status.tolist(), *out]  # the one time that the host waits for the device


def rule_of(spec: CodecSpec, effort: int = EFFORT) -> Rule:
    """The rule of a specification, encoding with `effort`."""
    return spec.rule_type(Codebook(spec.codebook, spec.vocab_size, spec.seed), effort, spec.coefficient_bits)


__all__ = ["Engine", "rule_of"]
