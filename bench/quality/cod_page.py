"""The tables of docs/cod.md and its plot, from cod.json and gpu_cod.json."""

from typing import Any

from bench.lib import page
from bench.lib.record import ROOT

SPEED = "gpu_cod"  # of bench/speed/cod_speed.py
NAME, PAGE = "cod", ROOT / "docs/cod.md"
RATES = (0.0625, 0.1, 0.25, 0.5, 1.0)  # payload bits a pixel; the first is all the condition's
FEW = 0.25  # the highest rate of the pair of the GPU
SHIPPED = "cifar10-flow"  # a larger network of another kind, trained longer, for the scale
WORDS = {
    "unified": "CoD",
    "plain": "CoD, trained by flow only",
    "alone": "the same network, trained without a condition",
    "small": "CoD, small",
    "large": "CoD, large",
    "gpu": "`cifar10-cod`",
    "gpu-alone": "the same as `cifar10-cod`, trained without a condition",
    SHIPPED: f"`{SHIPPED}`",
}


def psnr(row: dict[str, Any], key: str = "psnr") -> str:
    return f"{row[key][0]:.2f} ± {row[key][1]:.2f}"


def drawn_table() -> str:
    rows = page.load(NAME)["drawn"]
    lines = [[WORDS[r["model"]], str(r["steps"]), f"{r['guidance']:g}", psnr(r), f"{r['cifar_fd']:.2f}"] for r in rows]
    return page.table(["model", "steps", "guidance", "PSNR, dB", "CIFAR-FD"], lines)


def coded_table() -> str:
    rows, lines = page.load(NAME)["coded"], []
    cases = dict.fromkeys((r["model"], r["told"], r["rule"], r["solver"]) for r in rows)
    for model, told, rule, solver in cases:
        found = {r["bpp"]: r for r in rows if (r["model"], r["told"], r["rule"], r["solver"]) == (model, told, rule, solver)}
        cells = [f"{found[b]['psnr'][0]:.2f} ({found[b]['cifar_fd']:.1f})" if b in found else "" for b in RATES]
        name = WORDS[model] + (
            ", given its tokens" if told else ", given no condition" if model in ("unified", "plain", "gpu") else ""
        )
        lines.append([name, rule + (", drawn" if solver == "ab2" else ""), *cells])
    return page.table(["model", "rule", *(f"{b:g} bpp" for b in RATES)], lines)


def findings() -> str:
    """Each network given its condition, against the same network trained without one, rate by rate."""
    head = ["PSNR that the condition adds, default rule", *(f"{bpp:g} bpp" for bpp in RATES)]
    return page.table(head, [line for pair in (("unified", "alone"), ("gpu", "gpu-alone")) for line in _findings(*pair)])


def _findings(told_name: str, alone: str) -> list[list[str]]:
    rows, without, ungiven = page.load(NAME)["coded"], [], []
    one = next(r for r in page.load(NAME)["drawn"] if (r["model"], r["steps"]) == (told_name, 1))
    for bpp in RATES:
        if bpp > FEW and told_name == "gpu":
            break
        found = {
            (r["model"], r["told"]): r["psnr"][0]
            for r in rows
            if (r["bpp"], r["rule"], r["solver"]) == (bpp, "default", "mean")
        }
        told = one["psnr"][0] if bpp == RATES[0] else found[told_name, True]
        without.append(f"{told - found[alone, False]:+.2f} dB")
        ungiven.append(f"{told - found[told_name, False]:+.2f} dB")
    rest, name = [""] * (len(RATES) - len(without)), WORDS[told_name]
    return [
        [f"{name}, against the same network trained without a condition", *without, *rest],
        [f"{name}, against itself given no condition", *ungiven, *rest],
    ]


def sizes_table() -> str:
    lines = []
    for r in page.load(NAME)["sizes"]:
        told = psnr(r, "one_step") if "one_step" in r else ""
        spread = f"{r['entropy']:.2f} of 4" if "entropy" in r else ""
        lines.append(
            [
                WORDS[r["model"]],
                f"{r['weights'] / 1e6:.2f} M",
                f"{r['weights_of_the_codec'] / 1e6:.2f} M",
                str(r["iterations"]),
                f"{r['minutes']:g}",
                told,
                spread,
                f"{r['mse_told_nothing']['mse@1.0']:.4f}",
            ]
        )
    head = [
        "model",
        "weights",
        "of them the condition's",
        "iterations",
        "minutes",
        "PSNR of one step, dB",
        "bits per token",
        "error at sigma = 1, given no condition",
    ]
    return page.table(head, lines)


def source() -> str:
    r = page.load(NAME)
    return (
        f"{r['images']} test images; CIFAR-FD of as many other real images: {r['cifar_fd_of_other_images']:.2f}. "
        + page.source({**r, "command": "; ".join(r["commands"])}, NAME)
    )


def speed_table() -> str:
    """What cod_speed.py measured of a network of full size."""
    result = page.load(SPEED)
    lines = [
        [
            r["verb"] + (f", {r['steps']} steps" if r["verb"] == "decode" else ""),
            str(r["batch"]),
            f"{r['images_per_s']:.1f}",
            f"{r['times']['total']['median_ms'] / r['batch']:.2f} ms",
        ]
        for r in sorted(result["rows"], key=lambda r: (r["verb"], r["steps"], r["batch"]))
    ]
    head = page.table(["512 x 512", "images per batch", "images per second", "time per image"], lines)
    return f"{head}\n\n{result['weights'] / 1e6:.0f} million random weights; {result['about']}. {page.source(result, SPEED)}"


TABLES = {
    "speed": speed_table,
    "findings": findings,
    "drawn": drawn_table,
    "coded": coded_table,
    "sizes": sizes_table,
    "source": source,
}


def draw() -> None:
    """The dial: PSNR and CIFAR-FD by the number of steps, without guidance."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "noisebook", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(7.5, 3.2))
    rows = [r for r in page.load(NAME)["drawn"] if r["guidance"] == 1]
    for axis, key, label in ((axes[0], "psnr", "PSNR, dB"), (axes[1], "cifar_fd", "CIFAR-FD")):
        for model, style in (("unified", "o-"), ("plain", "s--")):
            points = [(r["steps"], r[key][0] if key == "psnr" else r[key]) for r in rows if r["model"] == model]
            axis.plot(*zip(*points, strict=True), style, label=WORDS[model], markersize=4)
        axis.set(xscale="log", xlabel="steps of a decode", ylabel=label)
        axis.set_xticks([1, 2, 4, 8, 25], ["1", "2", "4", "8", "25"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/cod-steps.svg", metadata={"Date": None})
