"""What it costs to read tokens, known from their runs before anything is made."""

import math
from collections.abc import Sequence

from noisebook.errors import FormatError
from noisebook.format.entropy import law_cost, least_bytes
from noisebook.format.refusals import refuse
from noisebook.format.runs import Run
from noisebook.format.sets import subset_cost
from noisebook.runtime.limits import Limits, too_much
from noisebook.runtime.native import native

MAX_CODED = 1 << 24  # range-coded tokens of a file
# microseconds of one core, about: of a run, and of a token plain or range-coded, with the extension and without it
RUN_COST, PLAIN_COST, CODED_COST = 3, (0.01, 0.05), (0.12, 2.0)


def check_cost(size: int, runs: Sequence[Run], limits: Limits) -> None:
    """Raises FormatError where a payload of `size` bytes cannot hold the runs, or where reading them takes more work than
    `limits` allow, without doing any of it."""
    least, coded = 0, sum(run.count for run in runs if run.zipf)  # of C(K, M) > (K / M)^M sets
    for run in runs:
        if run.subset:
            least += run.count * max(1, (run.vocab_size // 2 // run.subset).bit_length())
    if least > 8 * size:
        refuse("sets", size=size, whole=-(-least // 8))
    if least_bytes(coded) > size or coded > MAX_CODED:
        refuse("coded", size=size, count=coded)
    slow = native() is None
    plain = min(8 * size, sum(run.count for run in runs if not (run.zipf or run.subset)))  # of more the length is refused
    cost = RUN_COST * len(runs) + plain * PLAIN_COST[slow] + coded * CODED_COST[slow]
    for vocab_size, _ in {(run.vocab_size, run.zipf) for run in runs if run.zipf}:
        cost += law_cost(vocab_size)
    for run in runs:
        if run.subset:
            cost += run.count // run.subset * subset_cost(run.vocab_size // 2, run.subset)
    if words := too_much("reading its tokens takes about", math.ceil(cost), limits, "work"):
        raise FormatError(words)
