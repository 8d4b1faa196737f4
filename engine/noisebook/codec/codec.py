"""The public verbs of a codec."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from noisebook.codec import packing
from noisebook.codec.checks import (
    as_tensor,
    check_dtype,
    check_images,
    check_lost,
    check_payload,
    check_tensor,
    check_tokens,
)
from noisebook.codec.engine import rule_of as rule_of
from noisebook.codec.inputs import Range, batch_of, batches_of, in_groups, in_range
from noisebook.codec.sequence import Sequences
from noisebook.codec.stream import Layout, Stream, shortened, spec_for
from noisebook.codec.walk import Chooser, solve, walk
from noisebook.errors import CodecMismatchError, FormatError, ImageError, SpecError
from noisebook.format import container
from noisebook.runtime.devices import own_defaults, refuse_unreachable
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.runtime.pixels import to_uint8
from noisebook.runtime.progress import Tell
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex

if TYPE_CHECKING:
    from noisebook.codec.inputs import Pictures


class Codec(Sequences):
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

    `read_picture` makes uint8 [H, W, C] of a PIL image and a number of channels; `noisebook.load` gives the one that reads
    files (images/pillow.py).
    """

    def aliases(self) -> "Iterator[Codec]":
        """This codec, then the same under each other fingerprint that its backbone answers to: as a file or data set of an
        earlier noisebook calls it."""
        yield self
        for fingerprint in (self.backbone.fingerprint, *self.backbone.earlier_fingerprints()):
            if fingerprint != self.spec.fingerprint:
                other = Codec(replace(self.spec, fingerprint=fingerprint), self.backbone, *self._how)
                other.default_size = self.default_size
                yield other

    def as_recorded(self, spec: CodecSpec) -> "Codec":
        """The same codec as `spec` calls it, see `aliases`; itself where that is another codec."""
        if replace(self.spec, fingerprint=spec.fingerprint).hash != spec.hash:
            return self
        return next((codec for codec in self.aliases() if codec.spec.hash == spec.hash), self)

    @property
    def dtype(self) -> str:
        """What the network computes in, float32 or bfloat16 (`bfloat16-network`: but the autoencoder); tokens of one decode
        in the other."""
        return self.backbone.computes_in

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
        return self._calls_of_decode(steps, realism)

    @property
    def encode_nfe(self) -> int:
        """Network calls of an encode, without what it takes to see the result."""
        return self.candidates * self._calls_of_encode

    # ---- sizes and layouts ----------------------------------------------------------------------------------------------
    def tokens_per_image(self, size: tuple[int, int] | None = None) -> int:
        """The tokens L of an image of that size (H, W), by default `default_size`."""
        return self.stream(*(size or self.default_size)).length

    @property
    def layout(self) -> Layout:
        """`layout_for` the default size."""
        return self.layout_for(*self.default_size)

    # ---- encode ---------------------------------------------------------------------------------------------------------
    @overload
    def encode(
        self, images: "Pictures", weights: Tensor | None = None, range: Range | None = None, progress: Tell | None = None
    ) -> Tensor: ...

    @overload
    def encode(
        self, images: "Sequence[Pictures]", weights: None = None, range: Range | None = None, progress: Tell | None = None
    ) -> list[Tensor]: ...

    @own_defaults()
    def encode(
        self, images: Any, weights: Tensor | None = None, range: Range | None = None, progress: Tell | None = None
    ) -> Tensor | list[Tensor]:
        """Images -> tokens int64 [B, L] on the codec's device. Images are uint8, or float in [-1, 1], as one of

            a tensor [B, C, H, W]
            a numpy array [H, W, C] or [B, H, W, C]; grey ones also [H, W] or [B, H, W]
            a PIL image, read as from a file: upright, in sRGB, what is transparent over white (of `noisebook.load`'s codecs)
            a list of these, or of tensors [C, H, W], of any sizes: then a list of tokens comes back, [1, L] for each image,
            and L depends on its size. Those of one size are coded together, up to 2^20 pixels

        weights   float [B or 1, 1, H, W] >= 0: what an error at each pixel counts; tokens go where it counts more. A decoder
                  need not know them (Turbo-DDCM's priority maps). Not with a list
        range     the values of float images that are black and white: (0, 1), (0, 255), (-1, 1). Needed where none of them
                  is negative, for that may be [0, 1] as well as a bright picture in [-1, 1]
        progress  called as progress(done, total) with two ints: network calls that are done, and that there will be. First
                  (0, total), then after each call; a call has a whole batch, and total counts all batches. An encode that
                  runs as a CUDA graph is one launch: of it only the end is reported. An error that `progress` raises ends
                  the encode. On CUDA without graphs a call that is reported was launched, and may still be at work

        Raises ImageError for other types, shapes, dtypes or ranges, and for values that are not finite.
        """
        if not isinstance(images, (list, tuple)):
            (batch,) = in_range([batch_of(images, self.backbone.channels, self._read_picture)], range)
            return self._encode(batch, weights, progress=self._encoding(progress, [batch]))[0]
        if weights is not None:
            raise ImageError("weights are for a batch of images, and not for a list: encode them one by one")
        batches = in_range(batches_of(images, self.backbone.channels, self._read_picture), range)
        groups = in_groups(batches)
        joined = [torch.cat([batches[i] for i in group]) for group in groups]
        counter, tokens = self._encoding(progress, joined), dict[int, Tensor]()
        for group, batch in zip(groups, joined, strict=True):
            parts = self._encode(batch, progress=counter)[0].split([len(batches[i]) for i in group])
            tokens |= zip(group, parts, strict=True)
        return [tokens[i] for i in sorted(tokens)]

    @own_defaults()
    def reconstruct(
        self, images: Tensor, weights: Tensor | None = None, realism: float = 0.0, range: Range | None = None
    ) -> tuple[Tensor, Tensor]:
        """(tokens, images): what `encode` gives for a tensor and what `decode` will make of it, in one walk. `realism` is as
        of `decode` and changes no token."""
        tokens, decoded, _ = self._encode(self._batch(images, range), weights, with_images=True, realism=realism)
        return tokens, decoded

    @own_defaults()
    def trace(
        self, images: Tensor, weights: Tensor | None = None, range: Range | None = None
    ) -> tuple[Tensor, Tensor, dict[int, float]]:
        """`reconstruct`, and the mean squared error of x0_hat, a dimension of the state, before the tokens of each step."""
        tokens, decoded, errors = self._encode(self._batch(images, range), weights, with_images=True)
        steps = (int(s.step_index) for s in self.stream(*images.shape[2:]).segments)
        steps = dict.fromkeys(step for step in steps if step >= StepIndex.START)
        return tokens, decoded, dict(zip(steps, errors.mean(0).tolist(), strict=True))

    @own_defaults()
    def encode_packed(self, images: Tensor, weights: Tensor | None = None, range: Range | None = None) -> Tensor:
        """As `encode` of a tensor, but packed as in a file: uint8 [B, bytes], row by row `container.pack` of the tokens.

        Packed on the device, unless a vocab_size is not a power of two or the rule has its own code. Raises SpecError
        for several images under a rule whose payloads differ in length (`poisson`): pack their tokens one by one."""
        images = self._batch(images, range)
        if self._packs_on_device:
            return self._encode(images, weights, packed=True)[0]
        if not self.rule.fixed_length and len(images) > 1:
            raise SpecError(
                f"payloads of rule {self.spec.rule} differ in length: encode, then container.pack each image's tokens"
            )
        tokens, runs = self._encode(images, weights)[0].cpu().numpy(), self.stream(*images.shape[2:]).runs
        rows = [np.frombuffer(container.pack(row, runs), np.uint8) for row in tokens]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def _batch(self, images: Tensor, range: Range | None) -> Tensor:
        """A tensor of images, checked, its floats in [-1, 1]."""
        return in_range([check_images(images, self.backbone.channels, self.device)], range)[0]

    # ---- decode ---------------------------------------------------------------------------------------------------------
    @own_defaults()
    def decode(
        self,
        tokens: Tensor | np.ndarray,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        realism: float = 0.0,
        lost: Tensor | None = None,
        dtype: Literal["float32", "uint8"] = "float32",
        progress: Tell | None = None,
    ) -> Tensor:
        """Tokens [B, L], a tensor or numpy array of any integer dtype -> images [B, C, H, W] of that size (H, W), by
        default `default_size`.

        steps  only the first steps of the schedule, then the solver from there: what the beginning of the stream says. The
               tokens of later steps are not needed. Of a codec without steps: steps of the solver, even in the time of a
               rectified flow; with a CoD 25 for realism, 1 for the least error
        realism  from 0, the mean, which has the least error, to 1, a convincing picture: by one more call of a realism
               network, or where there is none for the backbone by three more of the backbone, Euler steps of its ODE.
               Between, (1 - realism) mean + realism convincing (codec/realism.py). Needs the solver `mean`
        lost   bool [B, L]: tokens that are known to be wrong, whatever stands there. Their atoms are skipped and the levels
               follow (codec/lost.py); rule `bins` only, image by image
        dtype  of the images: float32, about in [-1, 1], or uint8, what a picture file of them has
        progress  as of `encode`; the calls are those of `nfe_of`

        Any tokens inside their vocabulary decode. Raises CodecMismatchError if L or a token does not fit the layout,
        SpecError for more steps than there are, for another realism than 0 ... 1 and where the solver is not `mean`, and for
        tokens that cannot be lost; BackboneError where the realism network that the user named is not for the backbone.
        """
        tokens = as_tensor(tokens)
        check_dtype(dtype)
        stream = shortened(self.stream(*(size or self.default_size)), self.spec, steps)
        check_lost(lost, tokens)
        if steps is not None and tokens.ndim == 2:
            tokens, lost = tokens[:, : stream.length], None if lost is None else lost[:, : stream.length]
        check_tokens(tokens, stream.length, stream.height, stream.width)
        tokens = tokens.to(torch.int64)  # one that is too large for it becomes negative, and is outside of its vocabulary
        counter = self._decoding(progress, stream, len(tokens), realism, lost is not None)
        valid, decoded = self._decode(stream, tokens, realism, lost, counter)
        if not valid:
            raise CodecMismatchError("a token is outside its vocabulary: the tokens are of another codec")
        return to_uint8(decoded) if dtype == "uint8" else decoded

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
        check_payload(payload, stream, self.rule.fixed_length, limits)
        if not self._packs_on_device:
            rows = [container.unpack(row.tobytes(), stream.runs, limits) for row in payload.cpu().numpy()]
            return self.decode(torch.from_numpy(np.stack(rows)), size, steps, realism)
        if steps is not None:
            return self.decode(packing.unpack(payload.to(self.device), stream.runs)[0], size, steps, realism)
        valid, decoded = self._decode(stream, payload, realism)
        if not valid:
            raise FormatError("padding bits are not zero: the file is damaged")
        return decoded

    @own_defaults()
    @torch.no_grad()
    def walk(self, stream: Stream, batch: int, choose: Chooser) -> Tensor:
        """The images [B, C, H, W] at the end of a walk whose tokens `choose` names, see `noisebook.codec.walk`."""
        refuse_unreachable(self.backbone.device)
        if stream.tiled:
            raise SpecError("images of more than 2^24 dimensions are encoded and decoded only: choose a smaller size")
        y, cond = walk(self.parts, stream, batch, choose, len(self.spec.schedule))
        return solve(self.parts, stream, y, cond)


__all__ = ["Codec"]
