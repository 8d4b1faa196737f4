"""What a token stream is made of: runs of tokens of one vocabulary, and how a run becomes bits."""

from typing import NamedTuple


class Run(NamedTuple):
    """`count` tokens of `vocab_size` values each.

    subset  > 0: sets of that many distinct signed atoms, written as the rank of the set and the signs (Turbo-DDCM)
    zipf    > 0: range-coded under Zipf's law with this exponent, in 1/4096 (DiffC)
    """

    count: int
    vocab_size: int
    subset: int = 0
    zipf: int = 0
