"""What a token stream is made of: runs of tokens of one vocabulary, and how a run becomes bits."""

from typing import NamedTuple

from noisebook.format.entropy import zipf_exponent

CHUNK_PADDING = 2  # index bits of a chunk of rule `poisson` beyond its bits of divergence (DiffC)


class Run(NamedTuple):
    """`count` tokens of `vocabulary` values each.

    subset  > 0: sets of so many distinct signed atoms, written as the rank of the set and the signs (Turbo-DDCM)
    zipf    > 0: range-coded under Zipf's law with this exponent, in 1/4096 (DiffC)
    """

    count: int
    vocabulary: int
    subset: int = 0
    zipf: int = 0


def chunk_runs(divergence: int, most: int) -> tuple[Run, ...]:
    """The chunks of a step of `divergence` whole bits, none with more than `most` index bits: one run for each size, the
    larger first. m = ceil(D / (most - 2)) chunks share D + 2 m index bits as evenly as they can (DiffC)."""
    chunks = -(-divergence // (most - CHUNK_PADDING))
    total = divergence + CHUNK_PADDING * chunks
    bits, larger = divmod(total, chunks)
    sizes = ((larger, bits + 1), (chunks - larger, bits))
    return tuple(Run(count, 1 << c, zipf=zipf_exponent(c * divergence / total)) for count, c in sizes if count)
