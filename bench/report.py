"""Writes the tables of README.md, and the long ones behind them in docs/, from the JSON under bench/results, and a roofline
plot: no figure there is typed by hand.

python -m bench.report            # --check: only say whether the pages are up to date

Fills every `<!-- NAME -->...<!-- /NAME -->` of a page whose NAME is one of its tables in PAGES. GPU figures come from
gpu_kernels.json and gpu_throughput.json there, if they were measured; where not, the pages say so. Dry runs are refused.
"""

import argparse

from bench.lib.equal_tables import NAME as CODECS
from bench.lib.equal_tables import short
from bench.lib.page import Result, Tables, fill, load, measured, source, table
from bench.lib.record import ROOT
from bench.report_gpu import gpu, gpu_speed, roofline

DEFAULT = "photo"  # the preset whose backbone the README is about
TITLES = {"JPEG": "JPEG", "WEBP": "WebP"}


def presets() -> str:
    """The README's: what the presets of the embedded network reach and cost on Kodak, beside JPEG and WebP."""
    result = load("kodak")
    backbone = next(run["backbone"] for run in result["runs"] if run["preset"] == DEFAULT and "beside" in run)
    runs = [run for run in result["runs"] if run["backbone"] == backbone]
    runs.sort(key=lambda run: run["mean"]["bpp"])
    kinds = list(runs[0]["beside"])
    lines = []
    for run in runs:
        m = run["mean"]
        cells = [f"`{run['preset']}`", f"{m['bpp']:.3f}", f"{m['psnr']:.2f} dB", f"{m['ssim']:.3f}"]
        lines.append([*cells, *(_beside(run, kind) for kind in kinds), f"{m['seconds']:.1f} s"])
    head = ["preset", "bits per pixel", "PSNR", "SSIM", *(f"{TITLES[kind]}, not larger" for kind in kinds), "seconds"]
    images = [image for run in runs for image in run["images"]]
    ((calls, short, long),) = {(i["nfe"], *sorted((i["height"], i["width"]))) for i in images}
    about = (
        f"A picture has {long} x {short} pixels. Seconds are those of its encode and decode together, which call the "
        f"network {calls} times."
    )
    return f"{table(head, lines)}\n\n{result['about']}. {about} {source(result, 'kodak')}"


def _beside(run: Result, kind: str) -> str:
    """The PSNR of another codec's files that are not larger; where it has none for some pictures, ours on the others too."""
    other = run["beside"][kind]
    there = [row["psnr"] for row, file in zip(run["images"], other["rows"], strict=True) if file]
    if not there:
        return "no file so small"
    mean = f"{other['mean']['psnr']:.2f} dB"
    if len(there) == len(run["images"]):
        return mean
    return f"{mean} ({len(there)} pictures; noisebook on these {sum(there) / len(there):.2f} dB)"


def kodak() -> str:
    result = load("kodak")
    rows: list[list[str]] = []
    for run in sorted(result["runs"], key=lambda r: (r["mean"]["bpp"], r["mean"]["psnr"])):
        m, calls = run["mean"], run["images"][0]["nfe"]
        rows.append(
            [
                f"`{run['preset']}`",
                f"`{run['backbone']}`",
                run["dtype"],
                f"{m['bpp']:.3f}",
                f"{m['psnr']:.2f} dB",
                f"{run['least_psnr']:.2f} dB",
                f"{m['ssim']:.3f}",
                str(calls),
                f"{m['seconds']:.1f} s",
            ]
        )
        for kind, other in run.get("beside", {}).items():
            if other["images"]:
                there = [r["psnr"] for r, f in zip(run["images"], other["rows"], strict=True) if f]
                some = f" ({other['images']} images; `{run['preset']}` on these {sum(there) / len(there):.2f} dB)"
                label = f"{kind}, not larger{some if len(there) < len(run['images']) else ''}"
                rows.append(
                    [label, "", "", f"{other['mean']['bpp']:.3f}", f"{other['mean']['psnr']:.2f} dB", "", "", "", ""]
                )
    head = [
        "preset",
        "backbone",
        "computed in",
        "bits per pixel",
        "PSNR",
        "worst image",
        "SSIM",
        "NFE (network calls)",
        "seconds per image",
    ]
    return f"{table(head, rows)}\n\n{result['about']}. {source(result, 'kodak')}"


def quality() -> str:
    result = load("quality")
    rows = []
    for r in result["rows"]:
        size = [f"{r['steps']} x {r['budget']}", f"{r['vocab_size']:,}", f"{r['bits']:,.0f}"]
        rows.append([f"`{r['codebook']}`", *size, f"{r['psnr']:.2f} dB"])
    head = ["codebook", "steps x budget", "vocab_size", "bits", "PSNR"]
    return f"{table(head, rows)}\n\n{result['about']}. {source(result, 'quality')}"


def search() -> str:
    result = load("select_cpu")
    rows = []
    for entry in result["benchmarks"]:
        info = entry["extra_info"]
        if "times_torch" in info:
            codebook = "hadamard" if "hadamard" in entry["name"] else "independent"
            rows.append(
                [
                    f"`{codebook}`",
                    f"{info['codewords']:,}",
                    str(info["batch"]),
                    str(info["threads"]),
                    info["isa"],
                    f"{info['native_median'] * 1e3:.2f} ms",
                    f"{info['torch_median']:.2f} s",
                    f"{info['times_torch']:,.0f} x",
                ]
            )
    head = ["codebook", "codewords", "images", "threads", "code", "noisebook", "torch: randn, matmul, argmax", "ratio"]
    about = (
        "Medians, both in one run and with the same number of threads, D = 3072. torch draws independent codewords, as "
        "`independent` does; `hadamard` has a structured codebook of the same size."
    )
    return f"{table(head, rows)}\n\n{about} {source(result, 'select_cpu')}"


def threads() -> str:
    """The same search by every instruction set, with one thread and two, and one large view."""
    result = load("select_cpu")
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in result["benchmarks"]:
        info, name = entry["extra_info"], entry["name"].split("[")[0]
        if name == "test_isa_and_threads":
            what = f"`{info['codebook']}`, {info['codewords']:,} codewords, {info['batch']} images, D = {info['dimensions']}"
        elif name == "test_photo" and info["bases"] == 8:
            what = f"`hadamard`, {info['bases'] * info['dimensions']:,} codewords, 1 image, D = {info['dimensions']:,}"
        else:
            continue
        rows.setdefault((what, info["isa"]), []).append(f"{entry['stats']['median'] * 1e3:.2f} ms")
    lines = [[what, isa, *times] for (what, isa), times in rows.items()]
    return f"{table(['search', 'code', '1 thread', '2 threads'], lines)}\n\nMedians. {source(result, 'select_cpu')}"


PAGES: dict[str, Tables] = {
    "README.md": {"presets": presets, "gpu_speed": gpu_speed},
    "docs/rates.md": {"kodak": kodak},
    "docs/codebook.md": {"quality": quality},
    "docs/performance.md": {"search": search, "threads": threads, "gpu": gpu},
}
if measured(CODECS):
    PAGES["README.md"] |= {"codecs": short}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="what is done without options, too")
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    args = parser.parse_args()
    for name, tables in PAGES.items():
        fill(ROOT / name, tables, args.check)
    if not args.check and not roofline():
        print("no roofline plot: bench/results/gpu_kernels.json was not measured yet")


if __name__ == "__main__":
    main()
