"""What `refining` says of tokens chosen again, in float64."""

import math

import torch

from noisebook.codebook import reference, refining

NEAR = 1e-6  # of |missing|: what a score in float32 may be off, and a token's fall short of the best


def exact(residual, tokens, part, parts, shape, where, block):
    """What is missing and the score of every choice, in float64, for views of one block: residual [B, D], tokens [B, M]
    -> [B, D], [B, M, K]."""
    (bins, atoms, bases), (step_index, seed), d = shape, where, residual.shape[-1]
    pool = refining.pooled("hadamard", shape, reference.next_pow2(d))
    stay = refining.places(tokens, shape, pool)[:, torch.arange(bins) % parts != part]
    r = residual.double()
    t = reference.hadamard_total(tokens, d, bins, atoms, bases, step_index, seed, block).double()
    rest = reference.hadamard_total(stay, d, *pool, step_index, seed, block).double()
    length = t.norm(dim=-1, keepdim=True) * rest.norm(dim=-1, keepdim=True)
    c = torch.where(length > 0, (t * r).sum(-1, keepdim=True) / length.clamp(min=1e-300), 0)
    missing = r - math.sqrt(1 - 1 / parts) * c * rest
    scores = reference.hadamard_scores(missing, bases, step_index, seed, block).unflatten(-1, (bins, -1))[..., :atoms]
    return missing, scores.transpose(1, 2).flatten(2)


def near_ties(residual, tokens, chosen, shape, where, block):
    """How many of the tokens chosen again are not the best: each must be within NEAR of it, given the parts before."""
    state, count, parts = tokens.clone(), 0, refining.parts_of(shape[0])
    for part in range(parts):
        missing, scores = exact(residual, state, part, parts, shape, where, block)
        scores, got = scores[:, part::parts], chosen[:, part::parts]
        picked = scores.gather(-1, got[..., None] >> 1)[..., 0] * (1 - 2 * (got & 1))
        assert (picked >= scores.abs().amax(-1) - NEAR * missing.norm(dim=-1, keepdim=True)).all()
        count += int((got != reference.best_signed(scores)).sum())
        state[:, part::parts] = got
    return count
