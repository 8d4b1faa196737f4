"""What a report says about a data set: from its plan, ledger and shards, and from a few of its images, decoded."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisebook.datasets.detokenize import decoded
from noisebook.datasets.ledger import failures
from noisebook.datasets.reader import TokenDataset
from noisebook.datasets.sources.located import Inputs
from noisebook.errors import CodecMismatchError, ImageError, printable
from noisebook.format.container import pack, packed_bits
from noisebook.images.judges.judge import Judge
from noisebook.report.counting import Spent, TokenStatistics, spending, statistics
from noisebook.report.shown import Shown, compared, mean_of
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.spec.spec import CodecSpec

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec

ROWS = 20000  # images whose tokens are counted, at most: whole shards, spread over the data set
BATCH = 16  # images decoded at once


@dataclass(frozen=True)
class ReportRun:
    """A data set as a report shows it."""

    name: str
    spec: CodecSpec
    written: dict[str, Any]  # the specification with the keys that the plan has
    versions: list[tuple[dict[str, str], int]]  # each with the number of shards that were made under them
    counts: dict[str, int]
    failed: Counter
    passed_over: Counter
    remarks: Counter
    shards: list[dict[str, Any]]  # ledger entries of those that are done, in the order of time
    nfe: int  # network calls of a decode
    size: tuple[int, int]  # the most common (height, width)
    spent: list[Spent]  # of an image of that size
    tokens: TokenStatistics | None  # None: codes that vary in length
    shown: list[Shown]
    with_originals: bool  # inputs were given, in which the originals were looked for
    judged: dict[str, dict[str, Any]]  # other metrics over the shown images, as `Judge.summary` has them
    realism: float = 0.0  # of the decodes
    factory: str = ""  # MODULE:FACTORY of the backbone, where the plan records one
    failures: Sequence[dict[str, str]] = ()  # the first images that failed: key, code, message

    def mean(self, what: str) -> float | None:
        """Mean of `psnr`, `ssim` or `bpp` over the images that have it."""
        return mean_of(self.shown, what)


class ReportSource:
    """A data set to report: at most `ROWS` of its rows, read once, by their keys."""

    def __init__(self, folder: str, inputs: Inputs | None = None, limits: Limits = DEFAULT):
        self.data, self.name = (
            TokenDataset(folder, partial=True, inputs=inputs, limits=limits),
            Path(folder.rstrip("/")).name,
        )
        self.with_originals = inputs is not None
        done = self.data.done
        per_shard = max(1, max((entry["n_ok"] for entry in done), default=1))
        count = min(len(done), max(1, ROWS // per_shard))
        places = np.unique(np.linspace(0, len(done) - 1, count).round().astype(int)) if done else []
        starts = np.cumsum([0, *(entry["n_ok"] for entry in done)])
        self.rows: dict[str, tuple[int, dict[str, Any]]] = {}  # key -> (index, row)
        for place in places:
            for offset, row in enumerate(self.data.checked(done[place])):
                self.rows[row["key"]] = int(starts[place]) + offset, row

    def run(self, codec: "Codec", keys: list[str], judge: Judge | None = None, realism: float = 0.0) -> ReportRun:
        """All that the page says about it, with the images of these keys, decoded with that `realism`, compared also by what
        the `judge` has. Raises CodecMismatchError for another codec, and what `Codec.decode` raises."""
        data = self.data
        if codec.spec.hash != data.spec.hash:
            codec = codec.as_recorded(data.spec)
        if codec.spec.hash != data.spec.hash:
            raise CodecMismatchError(
                f"{printable(self.name)}: its tokens are of another codec than the one that was made for them"
            )
        entries = data.done
        counts = {name: sum(e[name] for e in data.ledgers) for name in ("n_in", "n_ok", "n_failed")}
        counts |= {
            "shards": len(entries),
            "of_shards": data.plan.shards,
            "bytes": sum(e["bytes"] for e in entries),
            "tokens": sum(e["tokens"] for e in entries),
        }
        shown = self._shown(codec, keys, judge, realism)
        verdicts = [image.verdict for image in shown if image.verdict is not None]
        return ReportRun(
            self.name,
            data.spec,
            data.plan.settings.as_dict()["spec"],
            data.versions,
            counts,
            Counter(f["code"] for e in data.ledgers for f in e["failed"]),
            Counter(data.plan.source.passed_over),
            Counter(r["code"] for e in data.ledgers for r in e["remarks"]),
            sorted(entries, key=lambda e: (e["finished"], e["shard"])),
            codec.nfe_of(None, realism),
            self.size,
            spending(codec.spec_for(*self.size), codec.stream(*self.size)),
            self._tokens(codec),
            shown,
            self.with_originals,
            judge.summary(verdicts) if judge else {},
            realism,
            data.plan.factory,
            failures(data.ledgers),
        )

    @property
    def size(self) -> tuple[int, int]:
        """The most common (height, width)."""
        return Counter((row["height"], row["width"]) for _, row in self.rows.values()).most_common(1)[0][0]

    def _tokens(self, codec: "Codec") -> TokenStatistics | None:
        if not self.data.spec.rule_type.fixed_length:
            return None
        size = self.size
        rows = [row["tokens"] for _, row in self.rows.values() if (row["height"], row["width"]) == size]
        vocab_sizes = np.asarray(codec.layout_for(*size).vocab_size).astype(np.int64)
        return statistics(np.stack(rows).astype(np.int64), vocab_sizes)

    def _shown(self, codec: "Codec", keys: list[str], judge: Judge | None, realism: float) -> list[Shown]:
        codec.dial(realism)  # raises where there is none, also of no image
        rows = [self.rows[key] for key in keys]
        shown: dict[int, Shown] = {}
        sizes = [(row["height"], row["width"]) for _, row in rows]
        for size in dict.fromkeys(sizes):
            group = [i for i, other in enumerate(sizes) if other == size]
            for first in range(0, len(group), BATCH):
                part = group[first : first + BATCH]
                pictures = decoded(codec, [rows[i][1] for i in part], None, self.data.limits, realism)
                for i, pixels in zip(part, pictures, strict=True):
                    shown[i] = self._judged(keys[i], *rows[i], pixels, codec, judge)
        return [shown[i] for i in range(len(rows))]

    def _judged(
        self, key: str, index: int, row: dict[str, Any], decoded: np.ndarray, codec: "Codec", judge: Judge | None
    ) -> Shown:
        runs = codec.stream(row["height"], row["width"]).runs
        fixed = self.data.spec.rule_type.fixed_length
        bits = packed_bits(runs) if fixed else 8 * len(pack(row["tokens"].astype(np.int64), runs))
        bpp = bits / (row["height"] * row["width"])
        if not self.with_originals:
            return compared(key, None, decoded, bpp)
        try:
            original = self.data.original(index)
        except ImageError as error:
            return compared(key, None, decoded, bpp, str(error))
        return compared(key, original, decoded, bpp, "", judge)


def choose(sources: Sequence[ReportSource], count: int) -> list[str]:
    """Keys of `count` images, spread over those that all data sets have, or over the first one's where they share none."""
    keys = list(sources[0].rows)
    common = [key for key in keys if all(key in source.rows for source in sources[1:])]
    keys = common or keys
    wanted = min(count, len(keys))
    return [keys[math.floor((i + 0.5) * len(keys) / wanted)] for i in range(wanted)]
