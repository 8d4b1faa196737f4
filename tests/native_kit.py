"""What tests of the C++ extension share: residuals, exact scores, expected noise."""

import numpy as np
import torch

import noisebook._C as native
from noisebook.codebook import reference

SELECT = {"hadamard": native.hadamard_select, "independent": native.independent_select}


NOISE = {"hadamard": native.hadamard_noise, "independent": native.independent_noise}


def residuals(form, rng, batch, blocks, d):
    """float32 [batch, blocks, d]"""
    x = rng.standard_normal((batch, blocks, d))
    if form == "constant":
        x[:] = rng.uniform(0.5, 2)
    elif form == "spike":
        x[:] = 0
        x[..., rng.integers(d)] = -3.0
    elif form == "smooth":
        x = np.fft.irfft(np.fft.rfft(x) / np.arange(1, d // 2 + 2), n=d)
    elif form == "tiny":
        x *= 1e-40
    elif form == "huge":
        x *= 3e37
    return np.ascontiguousarray(x, np.float32)


def exact_scores(kind, r, bins, atoms, bases, step_index, seed, block):
    """Exact scores of every choice of every bin, float64 [batch, bins, bases * atoms]."""
    r = torch.from_numpy(r)
    if kind == "independent":
        return reference.independent_scores(r, bins * atoms, step_index, seed, block).unflatten(-1, (bins, atoms)).numpy()
    s = reference.hadamard_scores(r, bases, step_index, seed, block)
    return s.unflatten(-1, (bins, -1))[..., :atoms].transpose(1, 2).flatten(2).numpy()


def losses(kind, r, tokens, *shape):
    """How far the |score| of each choice is below the best, as a part of |r|; the sign must be right too."""
    s = exact_scores(kind, r, *shape)
    chosen = np.take_along_axis(s, tokens[..., None] >> 1, -1)[..., 0]
    size = np.linalg.norm(r.astype(np.float64), axis=-1)[:, None]
    decided = np.abs(chosen) > 1e-2 * size
    assert np.array_equal((chosen < 0)[decided], (tokens % 2 == 1)[decided])
    return (np.abs(s).max(-1) - np.abs(chosen)) / np.maximum(size, 1e-300)


def integer_scores(r, count, step_index, seed, block):
    """The int8 rule of docs/codebook.md: float32 rotation in stages h = 1, 2, 4, ..., rint(127 v / max|v|), exact sums:
    int64 [batch, count]."""
    p = reference.next_pow2(r.shape[-1])
    v = np.zeros((len(r), p), np.float32)
    v[:, : r.shape[-1]] = r
    a = reference.signs(p, 0, step_index, reference.STREAM_ROTATION, seed, block).numpy()
    v = reference.fwht(torch.from_numpy(v * a.astype(np.float32))).numpy()
    most = np.abs(v).max(-1, keepdims=True)
    q = np.rint(np.float32(127) * v / np.where(most > 0, most, np.float32(1))).astype(np.int64)
    return q @ reference.signs(p, torch.arange(count), step_index, reference.STREAM_INDEPENDENT, seed, block).numpy().T


def expected_noise(kind, tokens, d, bins, atoms, bases, step_index, seed, block):
    """float32 [batch, blocks, d] by the definition."""
    out = []
    for u in range(tokens.shape[1]):
        t = torch.from_numpy(tokens[:, u])
        shape = (d, bins, atoms, bases) if kind == "hadamard" else (d, bins, atoms)
        total = {"hadamard": reference.hadamard_total, "independent": reference.independent_total}[kind]
        out.append(reference.unit_rms(total(t, *shape, step_index, seed, block + u)).numpy())
    return np.stack(out, 1)


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)
