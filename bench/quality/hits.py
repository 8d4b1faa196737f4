"""How near files come to what was asked for, on Kodak: python -m bench.quality.hits

Every picture is encoded for each rate and quality with the default network; a rate is judged by the size of the file, a
quality by the picture that decodes from it. Writes bench/results/hits.json and the table of docs/calibration.md.
"""

import argparse
import time
from typing import Any

from bench.lib import page
from bench.lib.record import DATA, ROOT, write
from noisebook import backbones
from noisebook.format.container import Container
from noisebook.images import targets
from noisebook.images.files import decode_picture
from noisebook.images.io import read_image
from noisebook.images.metrics import psnr

NAME, PAGE, BACKBONE = "hits", ROOT / "docs/calibration.md", "photo"
ASKED: dict[str, tuple[float, ...]] = {"bpp": (0.05, 0.1, 0.25, 0.5, 1), "psnr": (27, 30)}
UNIT = {"bpp": "%", "psnr": "dB"}


def measure(kind: str, wanted: float, nfe: int) -> list[dict[str, Any]]:
    backbone = backbones.load(BACKBONE)
    curve, tries, whole = targets.curve_of(backbone), 0, targets.encode_and_show

    def counted(*args: Any) -> Any:
        nonlocal tries
        tries += 1
        return whole(*args)

    targets.encode_and_show, rows = counted, []
    for path in sorted((DATA / "kodak").iterdir()):
        pixels, begin, tries = read_image(path), time.perf_counter(), 0
        target = targets.Target(max_nfe=nfe, **{kind: wanted})
        data, codec = targets.Aim(target, backbone, curve).file(pixels)
        seconds = time.perf_counter() - begin
        got = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
        off = 100 * (got / wanted - 1)
        if kind == "psnr":
            got = psnr(pixels, decode_picture(codec, Container.from_bytes(data))) or 99.0
            off = got - wanted
        rows.append({"image": path.stem, "got": got, "off": off, "encodes": max(1, tries), "seconds": seconds})
        print(kind, wanted, rows[-1], flush=True)
    targets.encode_and_show = whole
    return rows


def hits() -> str:
    result, lines = page.load(NAME), []
    for row in result["rows"]:
        unit = UNIT[row["asked"]]
        worst = max(row["images"], key=lambda i: abs(i["off"]))["off"]
        mean = sum(abs(i["off"]) for i in row["images"]) / len(row["images"])
        most = [i["encodes"] for i in row["images"]]
        lines.append(
            [
                f"`--{row['asked']} {row['wanted']:g}`",
                f"{mean:.2f} {unit}",
                f"{worst:+.2f} {unit}",
                f"{sum(most) / len(most):.1f}, at most {max(most)}",
            ]
        )
    head = ["asked", "mean distance", "farthest picture", "encodes per picture"]
    return page.table(head, lines) + f"\n\n{result['about']}. " + page.source(result, NAME)


TABLES: page.Tables = {"hits": hits}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nfe", type=int, default=targets.NFE, help="network calls of a decode")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    rows = [
        {"asked": kind, "wanted": wanted, "images": measure(kind, wanted, args.nfe)}
        for kind, values in ASKED.items()
        for wanted in values
    ]
    about = f"12 Kodak pictures at native size, backbone `{BACKBONE}`, {args.nfe} network calls a decode"
    write(NAME, {"about": about, "rows": rows}, 0)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
