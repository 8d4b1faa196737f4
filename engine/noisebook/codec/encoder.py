"""Look-ahead: an encoder walks with several copies of every image, each with tokens of its own whose scores nearly tie, and
goes on from the copy on which the network errs least (docs/findings/coding-ideas.md). A decoder need not know.
"""

import torch
from torch import Tensor

from noisebook.codebook import start_noise
from noisebook.runtime.cuda_graphs import constants

SHAKE = 0.1  # of the residual's root mean square: copies choose for residuals so much apart
STRIDE = 7919  # a prime: each step shakes by another rotation of one noise

kept_noise = constants(64)(start_noise)


class Lookahead:
    """`copies` of a batch x0 float32 [B, U, D], copy after copy: `x0` is [copies B, U, D]. `counts`, [B or 1, U, D], is what
    errors count (`Codec.encode`)."""

    def __init__(self, copies: int, x0: Tensor, counts: Tensor | None, seed: int):
        self.copies, self.seed = copies, seed
        self.x0 = x0.repeat(copies, 1, 1)
        self.counts = counts if counts is None or len(counts) == 1 else counts.repeat(copies, 1, 1)

    def shaken(self, residual: Tensor, step: int) -> Tensor:
        """The residuals, those of all copies but the first with a little noise of their own."""
        if self.copies == 1:
            return residual
        units, dims = residual.shape[1:]
        size = residual.square().mean((1, 2), keepdim=True).sqrt() * SHAKE
        parts = [torch.zeros(units, dims, device=residual.device)]
        for copy in range(1, self.copies):
            noise = kept_noise(units, dims, (self.seed + copy) % 2**64, residual.device)
            parts.append(noise.roll(step * STRIDE % dims, -1))
        noises = torch.stack(parts).repeat_interleave(len(residual) // self.copies, 0)
        return residual + size * noises

    def best(self, x0_hat: Tensor) -> Tensor:
        """Where the copy of least error lies, int64 [copies B]: the same for all copies of an image, the first of equals."""
        error = (self.x0 - x0_hat).square()
        error = (error if self.counts is None else error * self.counts).mean((1, 2)).view(self.copies, -1)
        batch = error.shape[1]
        return (error.argmin(0) * batch + torch.arange(batch, device=error.device)).repeat(self.copies)


__all__ = ["Lookahead"]
