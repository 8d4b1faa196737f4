"""The walks of Turbo-DDCM and of DiffC written plainly, to be timed beside noisebook's. They share no code with either.

`TurboLoop`  K codewords are drawn anew at each step, multiplied with the residual, and the M of largest |score| are summed
             with their signs; the network and all else run in half precision, one launch after the other. Given a batch it
             draws one codebook for all its images, and all of it can be recorded as one CUDA graph.
`DiffCLoop`  the mean of each step goes to the host, which cuts it in shuffled chunks; for each chunk one kernel scores
             2^bits candidates, and the host reads the winner's number before it goes on. One image only.

Both walk on our levels with our number of network calls, so that only the way of running differs. Neither packs its tokens
into bytes. What DiffC's kernels cost beyond ours is left out: its sample is drawn by one thread (here by torch).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib.baselines import generator, per_candidate
from noisebook.backbones.wrappers.latent import Latent
from noisebook.spec.step import Step


class Loop:
    """A walk in half precision on a discrete-time latent model of eps, whose weights it casts: `backbone` is its own.

    steps     of the schedule, as `CodecSpec.schedule`: levels and how far each goes down
    """

    def __init__(self, backbone: Latent, steps: Sequence[Step], dtype: torch.dtype, channels_last: bool = False):
        inner: Any = backbone.inner
        self.backbone, self.steps, self.dtype = backbone, steps, dtype
        self.levels = [*(step.sigma for step in steps), steps[-1].sigma_next]
        layout = torch.channels_last if channels_last else torch.preserve_format
        backbone.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        inner.net_input = {"dtype": dtype, "memory_format": layout}

    def images_in(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> the state [B, c, h, w] in half precision."""
        return self.backbone.encode(images.to(self.dtype) / 127.5 - 1)

    def start(self, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.randn(tuple(shape), device=device, dtype=self.dtype) * self.levels[0]

    def finish(self, y: Tensor) -> Tensor:
        """The last state -> images [B, 3, H, W]."""
        return self.backbone.decode(self.backbone.inner.denoise(y, self.levels[-1]))

    def down(self, y: Tensor, x0_hat: Tensor, z: Tensor, step: Step) -> Tensor:
        return x0_hat + step.keep * (y - x0_hat) + step.sigma_up * z


class TurboLoop(Loop):
    """`codewords` K and `atoms` M as in Turbo-DDCM; a token is (codeword's number, sign)."""

    codewords, atoms = 16384, 150

    def book(self, like: Tensor, step: int, recorded: bool) -> Tensor:
        """K codewords [K, D], from a seed of the step; inside a graph from torch's own generator, which a graph knows."""
        source = None if recorded else generator(like.device, step)
        return torch.randn(self.codewords, like[0].numel(), device=like.device, dtype=self.dtype, generator=source)

    def mixture(self, book: Tensor, tokens: Tensor, signs: Tensor, shape: Sequence[int]) -> Tensor:
        z = (book[tokens] * signs[..., None]).sum(1)
        return (z / z.std(1, keepdim=True)).view(tuple(shape))

    def encode(self, images: Tensor, recorded: bool = False) -> Tensor:
        """uint8 [B, 3, H, W] -> [steps, 2, B, M]: numbers of codewords, and their signs."""
        x0 = self.images_in(images)
        y, out = self.start(x0.shape, x0.device), []
        for i, step in enumerate(self.steps):
            x0_hat = self.backbone.inner.denoise(y, step.sigma)
            book = self.book(x0, i, recorded)
            scores = (x0 - x0_hat).flatten(1) @ book.T
            tokens = scores.abs().topk(self.atoms)[1]
            signs = scores.gather(1, tokens).sign()
            out.append(torch.stack([tokens, signs.long()]))
            if i < len(self.steps) - 1:
                y = self.down(y, x0_hat, self.mixture(book, tokens, signs, x0.shape), step)
        return torch.stack(out)

    def decode(self, tokens: Tensor, shape: Sequence[int], recorded: bool = False) -> Tensor:
        """What `encode` gave, and the state's shape [c, h, w] -> images."""
        y = self.start((tokens.shape[2], *shape), tokens.device)
        for i, step in enumerate(self.steps):
            x0_hat = self.backbone.inner.denoise(y, step.sigma)
            numbers, signs = tokens[i, 0], tokens[i, 1].to(self.dtype)
            y = self.down(y, x0_hat, self.mixture(self.book(y, i, recorded), numbers, signs, y.shape), step)
        return self.finish(y)


class DiffCLoop(Loop):
    """`bits` of divergence a step, in chunks of at most `chunk` bits of index, two of them padding."""

    bits, chunk = 1378, 16

    def chunks(self, dims: int, step: int) -> list[np.ndarray]:
        """The dimensions of each chunk, shuffled as the step's number says."""
        count = -(-self.bits // (self.chunk - 2))
        order = np.arange(dims) * count // dims
        np.random.default_rng(step).shuffle(order)
        return [np.flatnonzero(order == i) for i in range(count)]

    def encode(self, images: Tensor) -> list[list[int]]:
        """uint8 [1, 3, H, W] -> the index of each chunk of each step."""
        x0 = self.images_in(images)
        y, out = self.start(x0.shape, x0.device), []
        for i, step in enumerate(self.steps):
            x0_hat = self.backbone.inner.denoise(y, step.sigma)
            mean = ((x0 - x0_hat).float() * ((1 - step.keep) / step.sigma_up)).flatten().cpu().numpy()
            sample, indices = np.empty_like(mean), []
            for j, places in enumerate(self.chunks(len(mean), i)):
                mu = torch.from_numpy(mean[places]).to(x0.device)[None]
                indices.append(int(per_candidate(mu, 1 << self.chunk, i << 16 | j).item()))
                sample[places] = self.drawn(len(places), i, j, indices[-1], x0.device)
            out.append(indices)
            if i < len(self.steps) - 1:
                z = torch.from_numpy(sample).to(x0.device, self.dtype).view(x0.shape)
                y = self.down(y, x0_hat, z, step)
        return out

    def decode(self, tokens: list[list[int]], shape: Sequence[int], device: torch.device) -> Tensor:
        y = self.start((1, *shape), device)
        for i, step in enumerate(self.steps):
            x0_hat = self.backbone.inner.denoise(y, step.sigma)
            sample = np.empty(math.prod(shape), np.float32)
            for j, places in enumerate(self.chunks(len(sample), i)):
                sample[places] = self.drawn(len(places), i, j, tokens[i][j], device)
            y = self.down(y, x0_hat, torch.from_numpy(sample).to(device, self.dtype).view(y.shape), step)
        return self.finish(y)

    def drawn(self, dims: int, step: int, chunk: int, index: int, device: torch.device) -> np.ndarray:
        """A candidate's numbers, brought to the host."""
        source = generator(device, (step << 40 | chunk << 25 | index) + 1)
        return torch.randn(dims, device=device, generator=source).cpu().numpy()
