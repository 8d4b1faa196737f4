"""Writes the tables of README.md from the JSON under bench/results: no figure there is typed by hand.

python bench/tables.py            # --check: only say whether README is up to date
"""

import json
import sys
from pathlib import Path

from record import RESULTS, ROOT

README = ROOT / "README.md"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def source(result: dict, name: str) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k != "numpy")
    return f"<sub>{result['device']}, {result['threads']} threads, {versions}, {result['date']}: `{result['command']}`, " \
           f"`bench/results/{name}.json`</sub>"  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def kodak() -> str:
    result = load("kodak")
    rows: list[list[str]] = []
    for run in sorted(result["runs"], key=lambda r: (r["mean"]["bpp"], r["mean"]["psnr"])):
        m, calls = run["mean"], run["images"][0]["calls"]
        rows.append([f"`{run['preset']}`", f"`{run['backbone']}`", f"{m['bpp']:.3f}", f"{m['psnr']:.2f} dB",
                     f"{run['least_psnr']:.2f} dB", f"{m['ssim']:.3f}", str(calls), f"{m['seconds']:.1f} s"])  # fmt: skip
        for kind, other in run.get("beside", {}).items():
            if other["images"]:
                there = [r["psnr"] for r, f in zip(run["images"], other["rows"], strict=True) if f]
                some = f" ({other['images']} images; `{run['preset']}` on these {sum(there) / len(there):.2f} dB)"
                label = f"{kind}, not larger{some if len(there) < len(run['images']) else ''}"
                rows.append([label, "", f"{other['mean']['bpp']:.3f}", f"{other['mean']['psnr']:.2f} dB", "", "", "", ""])
    head = ["preset", "backbone", "bits per pixel", "PSNR", "worst image", "SSIM", "network calls", "seconds an image"]
    return f"{table(head, rows)}\n\n{result['about']}. {source(result, 'kodak')}"


def quality() -> str:
    result = load("quality")
    rows = []
    for r in result["rows"]:
        size = [f"{r['steps']} x {r['bins']}", f"{r['vocabulary']:,}", f"{r['bits']:,.0f}"]
        rows.append([f"`{r['law']}`", *size, f"{r['psnr']:.2f} dB"])
    head = ["codebook", "steps x tokens", "vocabulary", "bits", "PSNR"]
    return f"{table(head, rows)}\n\n{result['about']}. {source(result, 'quality')}"


def search() -> str:
    result = load("select_cpu")
    rows = []
    for entry in result["benchmarks"]:
        info = entry["extra_info"]
        if "times_torch" in info:
            law = "hadamard" if "hadamard" in entry["name"] else "independent"
            rows.append([f"`{law}`", f"{info['codewords']:,}", str(info["batch"]), str(info["threads"]), info["isa"],
                         f"{info['native_median'] * 1e3:.2f} ms", f"{info['torch_median']:.2f} s",
                         f"{info['times_torch']:,.0f} x"])  # fmt: skip
    head = ["codebook", "codewords", "images", "threads", "code", "noisebook", "torch: randn, matmul, argmax", "ratio"]
    return f"{table(head, rows)}\n\nMedians, both in one run, D = 3072. {source(result, 'select_cpu')}"


def render(text: str) -> str:
    """README's text with every `<!-- NAME -->...<!-- /NAME -->` filled in."""
    for make in (kodak, quality, search):
        name = make.__name__
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, found_too, tail = rest.partition(end)
        if not found_too:
            raise SystemExit(f"README has no place for the table {name!r}")
        text = head + begin + make() + "\n" + end + tail
    return text


def main() -> None:
    old = README.read_text()
    new = render(old)
    if "--check" in sys.argv:
        raise SystemExit(old != new and "README.md is not what bench/results says: run python bench/tables.py")
    Path(README).write_text(new)


if __name__ == "__main__":
    main()
