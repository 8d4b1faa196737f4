"""What loading a folder of a large model takes: hashes, with and without their cache, and the whole load.

    python -m bench.speed.loading [FILE.json] [--mib 1700] [--device cuda] [--dtype bfloat16] [--rounds 3] [--dry]

A `UNet2DModel` of about that many MiB in float16, random weights, is written to a temporary folder and loaded again, with a
cache of hashes of its own; its files are in the machine's cache by then (warm). Libraries are imported before. Without FILE:
bench/results/loading.json.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.lib.record import provenance, save, write
from noisebook import backbones
from noisebook.backbones.diffusers.files import WEIGHTS_FILE
from noisebook.runtime import cache, hashes

NAME = "loading"


def network(width: int) -> Any:
    """A UNet of diffusers, without memory."""
    diffusers = import_module("diffusers")
    with torch.device("meta"):
        return diffusers.UNet2DModel(
            sample_size=None,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
        )


def mib_of(width: int) -> float:
    return sum(p.numel() for p in network(width).parameters()) * 2 / 2**20


def write_folder(folder: Path, mib: float) -> int:
    """A model of at least that size; the bytes of its weights."""
    diffusers = import_module("diffusers")
    width = 32
    while mib_of(width) < mib:
        width += 32
    model = network(width)
    model.save_config(folder)
    diffusers.DDPMScheduler().save_pretrained(folder)
    random = torch.Generator().manual_seed(0)
    tensors = {n: (0.02 * torch.randn(p.shape, generator=random)).half() for n, p in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    return (folder / WEIGHTS_FILE).stat().st_size


def measure(folder: Path, device: str, dtype: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each part: median, least and most of the rounds."""
    file = folder / WEIGHTS_FILE
    notes = Path(os.environ[cache.VARIABLE]) / hashes.NOTES
    how = {"dtype": dtype, "channels_last": False, "compile": False}

    def load() -> backbones.Backbone:
        backbone = backbones.load(folder, device, accelerated=how)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return backbone

    def timed(work: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> dict[str, Any]:
        seconds = []
        for _ in range(rounds):
            before()
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
        return {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}

    def forget() -> None:
        notes.unlink(missing_ok=True)

    def hashed() -> list[str]:
        return hashes.hashes_of([file], [hashes.Stamp.of(file)])

    load()  # libraries and the device wake up
    models = iter([load() for _ in range(rounds)])
    rows = {
        "hash of the files, no cache": timed(hashed, forget),
        "hash of the files, cached": timed(hashed),
        "the earlier fingerprint, of tensors": timed(lambda: next(models).earlier_fingerprints()),
        "whole load, no cache": timed(load, forget),
        "whole load, cached": timed(load),
    }
    for name, row in rows.items():
        print(f"{name:40s} {row['seconds']:8.2f} s ({row['least']:.2f} to {row['most']:.2f})", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="result file (JSON)")
    parser.add_argument("--mib", type=float, default=1700.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU, which proves the script")
    options = parser.parse_args()
    device = "cpu" if options.dry else options.device
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as kept:
        os.environ[cache.VARIABLE] = kept
        size = write_folder(Path(place), 1.0 if options.dry else options.mib)
        time.sleep(hashes.SETTLED + 0.1)  # younger files are not noted down
        print(f"{size / 2**20:.0f} MiB, {device}, {options.dtype}", flush=True)
        rows = measure(Path(place), device, options.dtype, 1 if options.dry else options.rounds)
    result = {"dry": options.dry, "bytes": size, "dtype": options.dtype, "rounds": options.rounds, "rows": rows}
    if options.file:
        save(options.file, {**provenance(0, device), **result})
    elif not options.dry:
        write(NAME, result, 0, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
