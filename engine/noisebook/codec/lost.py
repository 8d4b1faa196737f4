"""A decode without some of its tokens: those that are known to be lost are skipped, and the walk's levels follow.

A step injects the noise of M atoms, of which l are lost. The encoder's state after it was

    y' = x0_hat + keep (y - x0_hat) + sigma_up z,     z = (a_1 + ... + a_M) / sqrt(M)

and what is known of it is the same without the lost atoms. Each of them is as likely its negative, as far as a decoder
knows, so that its mean is 0: this is the estimate of the encoder's state with the least squared error. Atoms are nearly
orthogonal and nearly all of an atom is noise, so that the state without them has less of it than sigma_next:

    sigma'^2 = keep^2 sigma^2 + (1 - l / M) sigma_up^2

(with l = 0 and sigma as planned that is sigma_next^2). At sigma' the network is asked next. `keep` and `sigma_up` stay those
of the encoder, so that state and level come back to its own, by the factor `keep` a step.

The sum without the lost atoms needs no kernel of its own: the lowest bit of a token is its sign, so that it is the mean of
the whole sum and of the one with the signs of the lost atoms turned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from noisebook.codec.stream import Stream
from noisebook.codec.walk import Parts
from noisebook.errors import SpecError
from noisebook.rules import Rule
from noisebook.spec.step import Step, StepIndex

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1 / 64  # of a planned level: where all noise is lost and none of the old is kept, the network is asked at this


@dataclass(frozen=True, eq=False)
class Known(Rule):
    """A rule of which some atoms are skipped.

    lost    step index -> bool [1, T], in the order of the tokens
    block   of a large picture: the only block whose views and tokens are given
    """

    rule: Rule | None = None
    lost: "Mapping[int, Tensor] | None" = None
    block: int | None = None

    def at(self, block: int) -> "Known":
        assert self.rule is not None
        return replace(self, rule=self.rule.at(block), block=block)

    def backtrace(
        self, y: "Tensor", x0_hat: "Tensor", tokens: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float
    ) -> "Tensor":
        assert self.rule is not None
        assert self.lost is not None
        as_sent = self.rule.backtrace(y, x0_hat, tokens, budget, step_index, keep, sigma_up)
        if step_index not in self.lost:
            return as_sent
        lost = self.lost[step_index]
        if self.block is not None:
            lost = lost[:, self.block * budget : (self.block + 1) * budget]
        return (as_sent + self.rule.backtrace(y, x0_hat, tokens ^ lost, budget, step_index, keep, sigma_up)) / 2


def without(parts: Parts, stream: Stream, tokens: "Tensor", lost: "Tensor") -> "tuple[Parts, Tensor]":
    """What the walk takes in place of `parts` and the tokens of one image, int64 [1, L], some of them `lost`, bool [1, L].

    Lost tokens of the start are taken for 0: any noise begins a walk. Raises SpecError for a rule whose
    tokens do not stand alone, and where tokens of a condition or of the resolutions are lost."""
    check_rule(parts.rule, parts.spec.rule)
    masks, shares = {}, {}
    for segment in stream.segments:
        mask = lost[:, segment.offset : segment.offset + segment.count]
        count = int(mask.sum())
        if count and segment.step_index < StepIndex.START:
            raise SpecError("the tokens that come before the start say how all others are read: none of them can be lost")
        if count and segment.step_index >= 0:
            masks[segment.step_index], shares[segment.step_index] = mask, 1 - count / segment.count
    sigmas = tuple(parts.backbone.round_sigma(sigma) for sigma in levels_of(parts.spec.schedule, shares))
    known = Known(parts.rule.book, rule=parts.rule, lost=masks)
    return replace(parts, rule=known, sigmas=sigmas), tokens.masked_fill(lost, 0)


def check_rule(rule: Rule, name: str) -> None:
    """Raises SpecError for a rule whose tokens do not stand alone."""
    if not rule.stands_alone:
        raise SpecError(f"tokens of rule {name} do not stand alone: only rule bins decodes without the lost ones")


def levels_of(schedule: Sequence[Step], shares: Mapping[int, float]) -> list[float]:
    """The level at which each step begins, and that at which the last one ends, where only a share of the atoms of some
    steps is known: `shares` by step index, 1 of all others. Where nothing is lost they are those of the schedule."""
    levels = [schedule[0].sigma] if schedule else [math.inf]
    for i, step in enumerate(schedule):
        share, sigma = shares.get(i, 1.0), levels[-1]
        if share == 1 and sigma == step.sigma:
            levels.append(step.sigma_next)
            continue
        old = step.keep * (1.0 if step.from_pure_noise else sigma)
        levels.append(max(math.hypot(old, math.sqrt(share) * step.sigma_up), LEAST * step.sigma_next))
    return levels
