"""The figures of a GPU in README.md and docs/performance.md, and the roofline plot, from gpu_kernels.json and
gpu_throughput.json."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.lib import floors
from bench.lib.page import Result, measured, source, table
from bench.lib.record import ROOT

PLOT = ROOT / "docs/images/roofline.svg"


@dataclass(frozen=True)
class Goal:
    """What is to be reached on one H200: `find` gives the figure from (kernels, throughput), None if not measured."""

    text: str
    limit: float
    unit: str
    find: Callable[[Result, Result], float | None]
    least: bool = False  # at least the limit rather than at most

    def row(self, kernels: Result, throughput: Result) -> list[str]:
        value = self.find(kernels, throughput)
        want = f"{'>=' if self.least else '<='} {self.limit:g} {self.unit}"
        if value is None:
            return [self.text, want, "not measured yet", ""]
        met = value >= self.limit if self.least else value <= self.limit
        return [self.text, want, f"{figure(value)} {self.unit}", "yes" if met else "no"]


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def pick(
    kernels: Result, codebook: str, batch: int, codewords: int = 1 << 20, kernel: str = "select", bins: int = 1
) -> Result | None:
    """The row of a search at D = 3072."""
    wanted = (kernel, codebook, 3072, codewords, batch, bins)
    keys = ("kernel", "codebook", "d", "codewords", "batch", "bins")
    return next((r for r in kernels.get("rows", []) if tuple(r[k] for k in keys) == wanted), None)


def graph_ms(row: Result | None) -> float | None:
    return row["times"]["graph"]["median_ms"] if row else None


def worst_ratio(kernels: Result, _: Result) -> float | None:
    """The largest multiple of its floor over the batches of codebook `independent`."""
    rows = [pick(kernels, "independent", batch) for batch in (16, 64, 256, 1024)]
    return max((r["ratio"] for r in rows if r), default=None) if all(rows) else None


def workspace(kernels: Result, _: Result) -> float | None:
    rows = [r["workspace_mib"] for r in kernels.get("rows", []) if r["workspace_mib"] is not None]
    return max(rows, default=None)


# A search of ours that does the same work as a baseline: (kernel, tokens a view)
SAME_WORK = {"chunked": ("select", 1), "DDCM": ("select", 1), "Turbo-DDCM": ("top", 64), "DiffC": ("biased", 1)}


def baselines_at(kernels: Result, batch: int) -> list[Result]:
    """The other ways to search, measured on `batch` images at D = 3072 and 2^20 codewords."""
    wanted = (3072, 1 << 20, batch)
    return [b for b in kernels.get("baselines", []) if (b["d"], b["codewords"], b["batch"]) == wanted]


def times_chunked(codebook: str) -> Callable[[Result, Result], float | None]:
    """How many times faster the search is than the fastest chunked torch: 64 images and plain launches in both."""

    def find(kernels: Result, _: Result) -> float | None:
        row = pick(kernels, codebook, 64)
        theirs = [b["times"]["plain"]["median_ms"] for b in baselines_at(kernels, 64) if b["kind"].startswith("chunked")]
        return min(theirs) / row["times"]["plain"]["median_ms"] if theirs and row else None

    return find


def end_to_end(key: str) -> Callable[[Result, Result], float | None]:
    """`key` of the fastest encode with graphs, 256 images, codebook `hadamard`."""

    def find(_: Result, throughput: Result) -> float | None:
        rows = [
            r
            for r in throughput.get("rows", [])
            if r.get("verb") == "encode" and r["graphs"] and r["batch"] == 256 and r["codebook"] == "hadamard"
        ]
        return 100 * max(rows, key=lambda r: r["images_per_s"])[key] if rows else None

    return find


PLAIN = ", plain launches in both"
GOALS = [
    Goal("`hadamard` search, 256 images", 0.25, "ms", lambda k, _: graph_ms(pick(k, "hadamard", 256))),
    Goal("`hadamard` search, 64 images", 0.1, "ms", lambda k, _: graph_ms(pick(k, "hadamard", 64))),
    Goal("`hadamard` search, 1 image, 2^30 codewords", 5, "ms", lambda k, _: graph_ms(pick(k, "hadamard", 1, 1 << 30))),
    Goal("`independent` search, 16 to 1024 images, times its floor", 2, "x", worst_ratio),
    Goal("memory beside inputs, outputs and rotated residual", 64, "MiB", workspace),
    Goal(f"`hadamard`, 64 images, times faster than chunked torch{PLAIN}", 60, "x", times_chunked("hadamard"), True),
    Goal(f"`independent`, 64 images, times faster than chunked torch{PLAIN}", 8, "x", times_chunked("independent"), True),
    Goal("encode, time outside a 50 M parameter network", 2, "%", end_to_end("share_outside")),
    Goal("encode, of the images per second of the network by itself", 95, "%", end_to_end("of_network_speed"), True),
]


def searches(kernels: Result) -> str:
    """Every search of 2^20 codewords with one token: codebook and D down, images across."""
    rows: dict[tuple[str, int], dict[int, str]] = {}
    for r in kernels["rows"]:
        if (r["kernel"], r["codewords"], r["bins"]) == ("select", 1 << 20, 1):
            cells = rows.setdefault((r["codebook"], r["d"]), {})
            cells[r["batch"]] = f"{graph_ms(r):.3g} ms ({r['ratio']:.1f} x)"
    lines = [
        [f"`{codebook}`, D = {d:,}", *(cells.get(b, "") for b in floors.BATCHES)]
        for (codebook, d), cells in sorted(rows.items())
    ]
    head = ["search, in brackets times its computed floor", "1 image", *(f"{b:,}" for b in floors.BATCHES[1:])]
    return table(head, lines)


def against(kernels: Result) -> str:
    """Other ways to search beside ours: the same number of images and the same work in both."""
    lines = []
    for batch in (1, 64):
        for other in baselines_at(kernels, batch):
            kernel, bins = SAME_WORK[other["kind"].split()[0]]
            slow, cells = other["times"]["plain"]["median_ms"], []
            for codebook in floors.CODEBOOKS:
                row = pick(kernels, codebook, batch, kernel=kernel, bins=bins)
                if row is None:
                    cells += ["", ""]
                    continue
                plain, graph = (row["times"][way]["median_ms"] for way in ("plain", "graph"))
                cells += [f"{plain:.3g} ms ({figure(slow / plain)} x)", f"{graph:.3g} ms"]
            lines.append([other["kind"], str(batch), f"{slow:.3g} ms", *cells])
    ours = [f"`{codebook}`, {way}" for codebook in floors.CODEBOOKS for way in ("plain", "graph")]
    return table(["a search of 2^20 codewords", "images", "plain", *ours], lines)


def fastest_other(kernels: Result) -> str:
    """The default search of one image against the fastest of the other ways for one image; "" where one is missing."""
    other = min(baselines_at(kernels, 1), key=lambda b: b["times"]["plain"]["median_ms"], default=None)
    rows = {codebook: pick(kernels, codebook, 1) for codebook in floors.CODEBOOKS}
    if other is None or None in rows.values():
        return ""
    slow = other["times"]["plain"]["median_ms"]
    ratios = {
        codebook: [figure(slow / row["times"][way]["median_ms"]) for way in ("plain", "graph")]
        for codebook, row in rows.items()
        if row
    }
    plain, graph = (" and ".join(f"{r[i]} (`{codebook}`)" for codebook, r in ratios.items()) for i in (0, 1))
    return (
        f"One image, the default search against the fastest of these ways, {other['kind']}: {plain} times faster with plain "
        f"launches in both; {graph} times with ours in a graph and the other not."
    )


def encodes(throughput: Result) -> str:
    """Encode and decode end to end, as graphs, for each way of computing the network."""
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for r in throughput["rows"]:
        if r.get("graphs"):
            way = ", ".join(str(v) if k == "dtype" else k.replace("_", " ") for k, v in r["way"].items() if v)
            rows.setdefault((r["codebook"], way), {})[r["verb"]] = r
    lines = []
    for (codebook, way), verbs in rows.items():
        cells = (
            f"{r['images_per_s']:,.0f} per second ({100 * r['share_outside']:.1f} % outside)" if r else ""
            for r in map(verbs.get, ("encode", "decode"))
        )
        lines.append([f"`{codebook}`", way, *cells])
    return table(["codebook", "network", "encode, in brackets time outside the network", "decode"], lines)


def gpu_speed() -> str:
    """The README's line: the way of computing the network that encodes fastest."""
    throughput = measured("gpu_throughput")
    if throughput is None:
        return "Nothing was measured on a GPU yet."
    rows = [r for r in throughput["rows"] if r.get("graphs")]
    best = max((r for r in rows if r["verb"] == "encode"), key=lambda r: r["images_per_s"])
    same = ("codebook", "way", "batch", "steps")
    (decode,) = (r for r in rows if r["verb"] == "decode" and all(r[key] == best[key] for key in same))
    return (
        f"**On a GPU**: one {throughput['device']} encodes {best['images_per_s']:,.0f} and decodes "
        f"{decode['images_per_s']:,.0f} images of 32 x 32 per second, in {best['steps']} steps of a U-Net of "
        f"{best['parameters'] / 1e6:.0f} million parameters in {best['way'].get('dtype', 'float32')}; "
        f"{100 * best['share_outside']:.1f} % of the time of an encode is spent outside of the network "
        f"([Speed](docs/performance.md)). <sub>{throughput['date']}, `bench/results/gpu_throughput.json`</sub>"
    )


AGAINST = """D = 3072. *plain*: plain launches; in brackets how many times faster than the other way at the left, for the
same number of images and the same work. *graph*: the same call replayed as a CUDA graph, which none of the other ways
was. They are written after the published codes, and `chunked` as a careful user of torch would write it
(`bench/lib/baselines.py`); none is an author's own program. D and K are ours: at the authors' own (K = 2^14, D = 16,384;
chunks of 2^16) nothing has been measured yet. All of them draw independent codewords, as `independent` does; `hadamard`
has a structured codebook."""


def gpu() -> str:
    kernels, throughput = measured("gpu_kernels"), measured("gpu_throughput")
    goals = [goal.row(kernels or {}, throughput or {}) for goal in GOALS]
    about = "D = 3072, 2^20 codewords per image and step unless said otherwise; end to end 256 images of 32 x 32, 10 steps."
    if not kernels and not throughput:
        rows = table(["on one H200", "to reach"], [row[:2] for row in goals])
        return f"Nothing here was measured on a GPU yet. What is to be measured, with `bench/gpu.sh`:\n\n{rows}\n\n{about}"
    device = (kernels or throughput or {})["device"]
    parts = [table([f"on one {device}", "to reach on one H200", "measured", "reached"], goals), about]
    if kernels:
        parts += [searches(kernels), f"Medians of a call in a CUDA graph. {source(kernels, 'gpu_kernels')}"]
        if kernels["baselines"]:
            about_others = (AGAINST, fastest_other(kernels), f"Medians. {source(kernels, 'gpu_kernels')}")
            parts += [against(kernels), "\n".join(filter(None, about_others))]
    if throughput:
        parts += [encodes(throughput), f"Medians. {source(throughput, 'gpu_throughput')}"]
    return "\n\n".join(parts)


def roofline() -> bool:
    """Draws what the measured kernels reach beside the roofs of the device; False if there is nothing to draw."""
    result = measured("gpu_kernels")
    if result is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "noisebook"  # the same file for the same figures
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=False)
    roofs = (
        (axes[0], "issue", floors.SM * floors.CLOCK * floors.ISSUE, "instructions"),
        (axes[1], "tensor", floors.INT8, "int8 operations"),
    )
    for axis, kind, roof, unit in roofs:
        rows = [
            r for r in result["rows"] if (r["codebook"] == "independent" and "tensor" in r["floors_ms"]) is (axis is axes[1])
        ]
        for label in sorted({f"{r['codebook']} {r['kernel']}" for r in rows}):
            points = [point(r, kind, roof) for r in rows if f"{r['codebook']} {r['kernel']}" == label]
            axis.loglog(*zip(*points, strict=True), "o", ms=4, label=label)
        span = [0.1, 10 * max(point(r, kind, roof)[0] for r in rows)] if rows else [0.1, 1e4]
        steps = [span[0] * (span[1] / span[0]) ** (i / 200) for i in range(201)]
        axis.loglog(steps, [min(roof, floors.HBM * x) for x in steps], "k-", lw=1)
        axis.set_xlabel(f"{unit} a byte of memory")
        axis.set_ylabel(f"{unit} a second")
        axis.legend(fontsize=7)
    figure.suptitle(f"{result['device']}, {result['date']}: what the kernels reach of the computed roofs", fontsize=10)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    return True


def point(row: Result, kind: str, roof: float) -> tuple[float, float]:
    """(work a byte, work a second) of a measured row; its work is what its computed floor takes at the roof."""
    work = row["floors_ms"][kind] * 1e-3 * roof
    traffic = row["floors_ms"]["hbm"] * 1e-3 * floors.HBM
    return work / traffic, work / (row["times"]["graph"]["median_ms"] * 1e-3)
