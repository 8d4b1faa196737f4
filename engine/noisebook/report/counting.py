"""Where the tokens of a stream go, and how much they say: counts, no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from noisebook.codec.stream import Stream
from noisebook.format.container import packed_bits
from noisebook.format.entropy import ideal_bits
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex

REPEATS = 8  # draws of uniform tokens whose entropy is averaged
BEFORE = {StepIndex.RESOLUTION: "resolutions", StepIndex.CONDITION: "condition", StepIndex.START: "start"}


@dataclass(frozen=True)
class Spent:
    """What an image of some size spends at one step: its tokens, of at most `vocab_size` values, and bits in a file.

    sigma  the noise level at which they are chosen; None: they come before the steps
    bits   None: they depend on the image, and no tokens were given
    """

    step_index: int
    sigma: float | None
    tokens: int
    vocab_size: int
    bits: float | None

    @property
    def name(self) -> str:
        """The step in words, the first one being step 1."""
        return BEFORE[StepIndex(self.step_index)] if self.step_index < 0 else f"step {self.step_index + 1}"


def spending(spec: CodecSpec, stream: Stream, tokens: np.ndarray | None = None) -> list[Spent]:
    """What each step spends, in the order of the stream. `tokens` int64 [L] of an image: of tokens that are range-coded the
    bits are -sum log2 p under their law, which a file takes up to a few bytes."""
    rows = []
    for segment in stream.segments:
        bits: float | None = float(packed_bits(segment.runs))
        at = segment.offset
        for run in segment.runs:
            if run.zipf and tokens is None:
                bits = None
            elif run.zipf and bits is not None and tokens is not None:
                bits += ideal_bits(tokens[at : at + run.count].tolist(), repeat((run.vocab_size, run.zipf), run.count))
            at += run.count
        index = int(segment.step_index)
        sigma = spec.schedule[index].sigma if index >= 0 else None
        rows.append(Spent(index, sigma, segment.count, max(run.vocab_size for run in segment.runs), bits))
    return rows


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of the tokens of `images` images, all those of the most common size.

    entropy      bits per token at each position, float64 [L], as counted: on average less than there is
    corrected    the same by `miller_madow`
    reachable    what uniform tokens of that many images would show as counted
    vocab_sizes  number of values of a token at each position, int64 [L]
    histogram    how often each value is taken, at the positions with the largest vocab_size
    """

    images: int
    entropy: np.ndarray
    corrected: np.ndarray
    reachable: np.ndarray
    vocab_sizes: np.ndarray
    histogram: np.ndarray

    @property
    def few(self) -> bool:
        """Whether there are fewer images than values at some position: then no estimate sees all of the entropy."""
        return self.images < int(self.vocab_sizes.max(initial=0))


def statistics(tokens: np.ndarray, vocab_sizes: np.ndarray) -> TokenStatistics:
    """Of tokens int64 [N, L] whose positions have that many values, int64 [L]."""
    largest = int(vocab_sizes.max())
    reachable = {int(v): uniform_entropy(int(v), len(tokens)) for v in np.unique(vocab_sizes)}
    return TokenStatistics(
        len(tokens),
        np.array([entropy(column) for column in tokens.T]),
        np.array([miller_madow(column, int(v)) for column, v in zip(tokens.T, vocab_sizes, strict=True)]),
        np.array([reachable[int(v)] for v in vocab_sizes]),
        vocab_sizes,
        np.bincount(tokens[:, vocab_sizes == largest].ravel(), minlength=largest),
    )


def entropy(tokens: np.ndarray) -> float:
    """Bits per token of integers [N], from their frequencies (the maximum-likelihood estimate, which is too low)."""
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-(share * np.log2(share)).sum())


def miller_madow(tokens: np.ndarray, vocab_size: int) -> float:
    """`entropy` plus (values seen - 1) / (2 N ln 2), the bias of order 1/N that Miller (1955) found, and at most
    log2(vocab_size). It is still too low where N is small beside the number of values that occur."""
    seen = len(np.unique(tokens))
    return min(entropy(tokens) + (seen - 1) / (2 * len(tokens) * math.log(2)), math.log2(vocab_size))


def uniform_entropy(vocab_size: int, count: int) -> float:
    """What `entropy` gives on average for `count` uniform tokens."""
    rng = np.random.default_rng(0)
    return float(np.mean([entropy(rng.integers(vocab_size, size=count)) for _ in range(REPEATS)]))


def averaged(values: np.ndarray, most: int) -> list[tuple[float, float]]:
    """[L] as at most `most` points (position, mean): a line of thousands of points is a blot."""
    parts = np.array_split(np.arange(len(values)), min(most, len(values)))
    return [(float(part.mean()), float(values[part].mean())) for part in parts]


def total_bits(rows: Sequence[Spent]) -> float | None:
    """Bits of all steps; None where some are not known."""
    known = [row.bits for row in rows if row.bits is not None]
    return sum(known) if len(known) == len(rows) else None
