"""Tokens in a DataLoader of torch: `noisebook.torch`, the name by which users import this file."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones import Backbone
from noisebook.codec.codec import Codec
from noisebook.datasets.pipeline import codec_of, pixels_of
from noisebook.runtime.limits import DEFAULT, Limits


@dataclass(frozen=True)
class Cost:
    """What a picture of `height` x `width` pixels costs a `Transform` each time that it is read.

    nfe      network calls of its encode
    seconds  measured on a picture of noise, in this process, with that many `threads`
    tokens, bits   what it becomes: L, and the sum of log2(vocab_size)
    """

    height: int
    width: int
    nfe: int
    seconds: float
    threads: int
    tokens: int
    bits: float

    def __str__(self) -> str:
        return (
            f"a picture of {self.height} x {self.width}: {self.nfe} network calls, {self.seconds:.3g} s on {self.threads} "
            f"thread{'s' * (self.threads != 1)}, each time that it is read; {self.tokens} tokens, {self.bits:.0f} bits"
        )


class Transform:
    """A picture -> its tokens, int64 [L] on the CPU: the `transform` of a torchvision data set, in DataLoader workers.

        transform = noisebook.torch.Transform("photo-low")
        print(transform.cost((256, 256)))
        loader = DataLoader(ImageFolder("PICTURES", transform), batch_size=64, num_workers=8)

    preset, options   as of `noisebook.load`
    backbone          as of `noisebook.load`, or a function without arguments that makes a `Backbone`
    limits            of pictures: `pixels`

    Each process makes its own codec at its first picture, so a `Transform` is small where it is pickled. A picture is
    in any form that `TokenizeBatch` takes. Pictures of one batch must have one size, unless your `collate_fn` takes lists.

    It encodes one picture at a time, and again in every epoch: `cost` says how long that takes. Tokenise what you read more
    than once with `noisebook.datasets.tokenize`, and a GPU is used well by `TokenizeBatch` only. A worker that was forked
    cannot use CUDA: take device="cpu", the default, or `multiprocessing_context="spawn"`.
    Raises ImageError for a picture that cannot be read, at the first picture what `noisebook.load` raises.
    """

    def __init__(
        self,
        preset: str | None = None,
        backbone: str | Backbone | Callable[[], Backbone] | None = None,
        limits: Limits = DEFAULT,
        **options: Any,
    ):
        self.preset, self.backbone, self.limits, self.options = preset, backbone, limits, options
        self._made: tuple[int, Codec] | None = None

    def __getstate__(self) -> dict[str, Any]:  # a codec is made where it works
        return {**self.__dict__, "_made": None}

    def __repr__(self) -> str:
        return f"Transform({self.preset!r})"

    @property
    def codec(self) -> Codec:
        """The codec of this process; a forked one makes its own, for threads do not survive a fork."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), codec_of(self.preset, self.backbone, self.options)
        return self._made[1]

    def __call__(self, image: Any) -> Tensor:
        codec = self.codec
        pixels = torch.from_numpy(pixels_of(image, codec.backbone.channels, self.limits).copy())
        return codec.encode(pixels.permute(2, 0, 1)[None])[0].cpu()

    def cost(self, size: tuple[int, int], threads: int = 1) -> Cost:
        """What a picture of (height, width) costs: two are encoded, of which the second counts. `threads`: a worker of a
        DataLoader has one. Raises SpecError where the codec takes no such picture."""
        codec, before = self.codec, torch.get_num_threads()
        layout = codec.layout_for(*size)
        noise = torch.randint(256, (1, codec.backbone.channels, *size), dtype=torch.uint8)
        torch.set_num_threads(threads)
        try:
            codec.encode(noise)
            begin = time.perf_counter()
            codec.encode(noise).cpu()  # waits for a GPU
            seconds = time.perf_counter() - begin
        finally:
            torch.set_num_threads(before)
        return Cost(*size, codec.encode_nfe, seconds, threads, len(layout), layout.bits)


__all__ = ["Cost", "Transform"]
