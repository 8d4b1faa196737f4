"""What docs/performance.md says of latent_speed.py: what is to be reached, and every row; unmeasured until a GPU ran it.
Beside it what data sets and refinement are to reach on a GPU, which gpu.sh's steps `tokenizing` and `kernels` measure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.lib import page
from bench.lib.cases import GPU_CASES
from bench.lib.page import Result
from bench.lib.record import ROOT

NAME = "gpu_latent"
PAGE = ROOT / "docs/performance.md"
UNMEASURED = "not measured yet"
Rows = dict[str, Result]  # by name: "encode, SD 2.1, bins, compile, graph, B=32"


@dataclass(frozen=True)
class Line:
    """What is to be reached on one H200: `find` gives the figure from the rows, None if one of them is not measured."""

    text: str
    limit: float | None
    unit: str
    find: Callable[[Rows], float | None]
    least: bool = False  # at least the limit rather than at most

    def cells(self, rows: Rows) -> list[str]:
        value = self.find(rows)
        want = "" if self.limit is None else f"{'>=' if self.least else '<='} {self.limit:g} {self.unit}"
        if value is None:
            return [self.text, want, UNMEASURED, ""]
        met = "" if self.limit is None else "yes" if (value >= self.limit if self.least else value <= self.limit) else "no"
        return [self.text, want, f"{value:.3g} {self.unit}", met]


def of(name: str, key: str) -> Callable[[Rows], float | None]:
    """One number of one row."""
    return lambda rows: rows[name][key] if name in rows else None


def part(name: str, key: str) -> Callable[[Rows], float | None]:
    """Milliseconds an image of one part of a row."""
    return lambda rows: rows[name]["times"][key]["median_ms"] / rows[name]["batch"] if name in rows else None


def ratio(above: str, below: str) -> Callable[[Rows], float | None]:
    """How many times as long an image takes in one row as in another."""
    return lambda rows: rows[above]["ms_an_image"] / rows[below]["ms_an_image"] if {above, below} <= rows.keys() else None


def of_network(name: str) -> Callable[[Rows], float | None]:
    """How many times as long a row takes as its bare network."""
    return lambda rows: (
        rows[name]["times"]["total"]["median_ms"] / rows[name]["times"]["network"]["median_ms"] if name in rows else None
    )


def named(verb: str, way: str, batch: int, compile: bool = True, graph: bool = True, whole: bool = False) -> str:
    how = "compile whole, " if whole else "compile, " if compile else ""
    return f"{verb}, SD 2.1, {way}, {how}{'graph' if graph else 'eager'}, B={batch}"


LOOP, DIFFC = "Turbo-DDCM's loop", "DiffC's loop"
AT32 = {verb: named(verb, "bins", 32) for verb in ("encode", "decode")}
LINES = [
    Line("encode, `compile`, batch 32", 22.5, "images/s", of(AT32["encode"], "images_per_s"), True),
    Line("decode, `compile`, batch 32", 19, "images/s", of(AT32["decode"], "images_per_s"), True),
    *(
        Line(
            f"{verb}, `compile`, batch 32, of network and autoencoder by themselves",
            1.03,
            "x",
            of(AT32[verb], "times_of_parts"),
        )
        for verb in AT32
    ),
    *(
        Line(
            f"{verb}, batch 32, compiled in one piece, of block by block",
            None,
            "x",
            ratio(named(verb, "bins", 32, whole=True), AT32[verb]),
        )
        for verb in AT32
    ),
    Line("autoencoder, encode, batch 32", 5, "ms an image", part(AT32["encode"], "autoencoder")),
    Line("autoencoder, decode, batch 32", 10, "ms an image", part(AT32["decode"], "autoencoder")),
    Line("encode, `compile`, batch 1", 125, "ms", of(named("encode", "bins", 1), "ms_an_image")),
    Line(
        "encode, rule `top`, no graph, batch 1, of the bare network without graph",
        1.1,
        "x",
        of_network(named("encode", "top", 1, False, False)),
    ),
    Line(
        "encode, rule `top`, no graph, batch 1, contiguous, of the same channels last",
        None,
        "x",
        ratio("encode, SD 2.1, top, eager, contiguous, B=1", named("encode", "top", 1, False, False)),
    ),
    *(
        Line(
            f"{verb}, rule `poisson`, of the default rule, {'`compile`, ' if compile else ''}batch {batch}",
            1.3 if verb == "encode" else 1.0,
            "x",
            ratio(named(verb, "poisson", batch, compile), named(verb, "bins", batch, compile)),
        )
        for batch, compile in ((1, False), (8, True), (32, True))
        for verb in ("encode", "decode")
    ),
    *(
        Line(f"{verb}, Turbo-DDCM's loop against ours with rule `top`, {words}", None, "x", ratio(theirs, ours))
        for verb in ("encode", "decode")
        for words, theirs, ours in (
            ("both unchanged, one image", named(verb, LOOP, 1, False, False), named(verb, "top", 1, False)),
            ("both with batch 32, graph and `compile`", named(verb, LOOP, 32, whole=True), named(verb, "top", 32)),
        )
    ),
    *(
        Line(
            f"{verb}, DiffC's loop against ours with rule `poisson`, one image",
            None,
            "x",
            ratio(named(verb, DIFFC, 1, False, False), named(verb, "poisson", 1, False)),
        )
        for verb in ("encode", "decode")
    ),
]
ABOUT = (
    "Stable Diffusion 2.1's size at 512 x 512, random weights, 19 network calls to encode and 20 to decode. *x*: times as "
    "long an image. The loops are written after the published codes (`bench/lib/loops.py`) and walk on our levels; none is "
    "an author's program."
)


def latent_speed() -> str:
    """What is to be reached and what was measured."""
    result = page.measured(NAME) or {}
    rows = {row["name"]: row for row in result.get("rows", []) if "error" not in row}
    goals = page.table(["on one H200", "to reach", "measured", "reached"], [line.cells(rows) for line in LINES])
    if not result:
        return f"Nothing here was measured yet; `bash bench/gpu.sh latent` does.\n\n{goals}\n\n{ABOUT}"
    every = [
        [
            row["name"],
            f"{row['ms_an_image']:.1f}",
            f"{row['images_per_s']:.2f}",
            f"{100 * row['share_outside']:.1f} %",
            f"{row['peak_gib']:.1f}",
            "" if row["recorded"] or not row["graph"] else "no graph could be recorded",
        ]
        for row in rows.values()
    ]
    failed = [[row["name"], "", "", "", "", f"failed: {row['error']}"] for row in result["rows"] if "error" in row]
    head = ["", "ms an image", "images/s", "outside network and autoencoder", "peak GiB", ""]
    left = f"\n\nNot measured, for lack of minutes: {'; '.join(result['left_out'])}." if result["left_out"] else ""
    return f"{goals}\n\n{ABOUT}\n\n{page.table(head, every + failed)}{left}\n\n{page.source(result, NAME)}"


HOURS = [  # what is encoded -> the result file, the row's name there, its images per second
    ("32 x 32, a U-Net of 50 million parameters, float32", "gpu_throughput", "encode hadamard float32 graph B=256"),
    ("the same, bfloat16, channels last", "gpu_throughput", "encode hadamard bfloat16 channels_last graph B=256"),
    ("512 x 512, Stable Diffusion 2.1's size", NAME, named("encode", "bins", 32, False)),
    ("the same, compiled", NAME, AT32["encode"]),
    ("1024 x 1024, SDXL's size, compiled", NAME, "encode, SDXL, bins, compile, graph, B=8"),
    ("1024 x 1024, Stable Diffusion 3's size, compiled", NAME, "encode, SD3-medium, bins, compile, graph, B=8"),
    ("1024 x 1024, Flux's size, compiled", NAME, "encode, Flux-dev, bins, compile, graph, B=8"),
]


def gpu_hours() -> str:
    """Hours of one GPU for a million images that lie in its memory."""
    lines, sources = [], dict[str, str]()
    for text, name, row in HOURS:
        result = page.measured(name)
        speeds = {r["name"]: r["images_per_s"] for r in (result or {}).get("rows", []) if "images_per_s" in r}
        lines.append([text, f"{1e6 / 3600 / speeds[row]:.2f}" if row in speeds else UNMEASURED])
        if result and row in speeds:
            sources[name] = page.source(result, name)
    head = ["what is encoded, images in batches in the GPU's memory", "GPU hours per million images"]
    return "\n\n".join([page.table(head, lines), *sources.values()])


REFINED = "hadamard_refined D=16384 K=2^21 B=1 M=64"


def share(case: dict[str, Any]) -> Callable[[Rows], float | None]:
    """Per cent of the codec's own speed that a case of tokenizing.py reached."""
    name = f"{case['name']}, {case['input']}"
    return lambda rows: 100 * rows[name]["ratio"] if name in rows else None


def refined(rows: Rows) -> float | None:
    """Milliseconds of one pass that chooses tokens again, in a graph."""
    return rows[REFINED]["times"]["graph"]["median_ms"] if REFINED in rows else None


DATASETS = [Line(f"{case['name']}, from {case['input']}", 100 * case["least"], "%", share(case), True) for case in GPU_CASES]
PASS = Line("tokens of one step chosen again (`effort` 1), one image, 4 x 64 x 64, 64 tokens", 0.2, "ms", refined)


def gpu_lines() -> str:
    """What `tokenize` is to reach of the codec's own speed, and a pass of refinement."""
    results = {name: page.measured(name) for name in ("gpu_tokenizing", "gpu_kernels")}
    of_datasets = {f"{row['name']}, {row['input']}": row for row in (results["gpu_tokenizing"] or {}).get("rows", [])}
    of_kernels = {row["name"]: row for row in (results["gpu_kernels"] or {}).get("rows", [])}
    lines = [*(line.cells(of_datasets) for line in DATASETS), PASS.cells(of_kernels)]
    used = {"gpu_tokenizing": bool(of_datasets), "gpu_kernels": REFINED in of_kernels}
    sources = [page.source(result, name) for name, result in results.items() if result and used[name]]
    return "\n\n".join([page.table(["on one H200", "to reach", "measured", "reached"], lines), *sources])


TABLES: page.Tables = {"gpu_hours": gpu_hours, "latent_speed": latent_speed, "gpu_lines": gpu_lines}
