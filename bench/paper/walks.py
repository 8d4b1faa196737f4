"""Plain DDCM forced on a family that it was not made for, to be compared with the codec's own walk.

`forced` is the failure that gDDCM starts from. DDCM replaces the noise of DDPM's ancestral step by codewords. The samplers
of EDM and flow matching have no such noise: their step is deterministic and goes all the way to sigma_next. Putting DDPM's
noise on top of it gives, in this project's coordinates and with sigma_down = sigma_next^2 / sigma,

    y_next = x0_hat + (sigma_next / sigma) (y - x0_hat) + sqrt(sigma_next^2 - sigma_down^2) z(token)

where gDDCM has sigma_down / sigma in place of sigma_next / sigma (the back-trace: first below sigma_next, then up by the
noise). With x0_hat = x0 the variance of y - x0 is sigma_next^2 at every step of gDDCM, but here it is too large by the
factor 1 + sum over steps of (1 - (sigma_next / sigma)^2), so the level that the network gets is not the state's. Levels,
codebook, start, tokens and solver are those of the codec that it is held against, so bits and network calls are equal too.
"""

import torch
from torch import Tensor

from noisebook.codec.codec import Codec
from noisebook.runtime.pixels import from_uint8
from noisebook.spec.step import Step, StepIndex


def excess(schedule: tuple[Step, ...]) -> float:
    """Variance of y - x0 at the end of `forced` for a perfect x0_hat at p = 1/2, over the squared level the network gets."""
    return 1 + sum(1 - (step.sigma_next / step.sigma) ** 2 for step in schedule)


@torch.no_grad()
def forced(codec: Codec, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images [B, C, H, W] -> (tokens [B, L], decoded [B, C, H, W] float32, the last state before the solver).

    `codec` has a codebook start, p = 1/2, one token run at every step and the solver `mean`; images need no padding.
    """
    stream, book = codec.stream(*images.shape[2:]), codec.start_rule.book
    x0 = stream.views(codec.backbone.encode(from_uint8(images.to(codec.device))))
    budgets = {segment.step_index: segment.budget for segment in stream.segments}
    tokens = [book.select(x0, budgets[StepIndex.START], StepIndex.START)]
    y = codec.spec.schedule[0].sigma * book.noise(tokens[0], stream.dims, StepIndex.START)
    for i, step in enumerate(codec.spec.schedule):
        x0_hat = stream.views(codec.backbone(stream.join(y), step.sigma))
        tokens.append(codec.rule.book.select(x0 - x0_hat, budgets[i], i))
        y = codec.rule.book.backtrace(y, x0_hat, tokens[-1], step.sigma_next / step.sigma, step.sigma_up, i)
    y = stream.join(y)
    decoded = codec.backbone.decode(codec.backbone(y, codec.spec.schedule[-1].sigma_next))
    return torch.cat([t.flatten(1) for t in tokens], 1), decoded, y
