"""CoD of full size on a GPU: condition tokens a second, and seconds of a decode: python -m bench.speed.cod_speed FILE.json

The published pixel model of .0039 bits a pixel, random weights, bfloat16, images of 512 x 512: `encode` is the condition's
tokens alone, `decode` is drawn in 25 steps and in one. With --dry, and without a GPU: a tiny model of the same kind on the
CPU, which proves the script and measures nothing.
"""

import argparse
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch

import noisebook
from bench.lib.record import provenance, save
from bench.lib.timing import Clock
from noisebook.backbones.cod.cod import CoD
from noisebook.backbones.cod.nets import CodConfig, CodNet
from noisebook.codec.codec import Codec

TINY = CodConfig(hidden=64, heads=4, blocks=3, cond_blocks=2, hidden_x=8, width=32)


def model(device: torch.device, config: CodConfig) -> CoD:
    """Random weights, made on the device: 1.8 GB of them."""
    torch.manual_seed(0)
    with device:
        net = CodNet(config)
    backbone = CoD(net.eval().requires_grad_(False))
    backbone.name, backbone.fingerprint = "cod", "0" * 64
    return backbone.accelerate(torch.bfloat16, channels_last=True)  # type: ignore[return-value]


def row_of(clock: Clock, codec: Codec, side: int, verb: str, batch: int, steps: int, seconds: float) -> dict[str, Any]:
    """One verb at one size of batch; `steps` are those of a decode."""
    images = [torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=clock.device) for _ in range(4)]
    call, inputs = codec.encode, images
    if verb == "decode":
        call, inputs = partial(codec.decode, size=(side, side), steps=steps), [codec.encode(x) for x in images]
    times = clock.time(lambda i: call(inputs[i]), len(inputs), seconds=seconds)
    name = f"{verb} B={batch}" + (f" {steps} steps" if verb == "decode" else "")
    each = 1e3 * batch / times["median_ms"]
    print(f"{name:30s} {each:10.2f} images/s  {times['median_ms'] / batch:9.2f} ms an image", flush=True)
    return {
        "name": name,
        "verb": verb,
        "batch": batch,
        "steps": steps,
        "side": side,
        "times": {"total": times},
        "images_per_s": each,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=2.0, help="when to stop starting cases")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    cuda = torch.cuda.is_available() and not options.dry
    device, side = torch.device("cuda" if cuda else "cpu"), 512 if cuda else 64
    clock = Clock(device, (5, 50)) if cuda else Clock(device, (2, 3))
    backbone = model(device, CodConfig() if cuda else TINY)
    backbone.guidance = 3.0
    codec = noisebook.load(backbone=backbone, condition="only", steps=25)
    result: dict[str, Any] = {
        **provenance(0, device.type),
        "dry": not cuda,
        "weights": sum(p.numel() for p in backbone.parameters()),
        "about": "medians and quartiles in ms of whole batches; bfloat16, channels-last, CUDA graphs, guidance 3",
        "rows": [],
        "failed": [],
    }
    cases = [("encode", 64, 0), ("decode", 8, 25), ("encode", 1, 0), ("decode", 1, 25), ("decode", 8, 1), ("encode", 256, 0)]
    for case in cases if cuda else [("encode", 2, 0), ("decode", 1, 3)]:
        if time.monotonic() - begin > 0.8 * 60 * options.minutes:
            break
        try:
            result["rows"].append(row_of(clock, codec, side, *case, seconds=4.0 if cuda else 0.1))
            if cuda and not len(codec.graphs):
                raise RuntimeError("no graph was recorded")
        except Exception as error:
            traceback.print_exc()
            result["failed"].append({"name": str(case), "error": f"{type(error).__name__}: {error}"[:500]})
        save(options.file, result)
    return 1 if result["failed"] or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
