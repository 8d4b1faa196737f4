"""Images a second end to end, and the share of time outside the network: python -m bench.speed.throughput FILE.json

Batches of uint8 images at 32 x 32 through a U-Net with random weights: encode (10 steps, one token of 2^21 values each) and
decode, against the network by itself called as often, in one CUDA graph. For each way of computing the network. Without a
GPU: on the CPU with a small batch, or with --dry at tiny sizes, which proves the script and measures nothing.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.lib.record import provenance, save
from bench.lib.timing import Clock, Graphed
from bench.lib.unet import SIDE, UNet, UNetBackbone
from noisebook.codec.codec import Codec
from noisebook.spec import schedule
from noisebook.spec.spec import CodecSpec

LEVELS, P = (20.0, 0.1), 0.5
PLAIN: dict[str, Any] = {"dtype": "float32"}
WAYS: list[dict[str, Any]] = [  # how the network computes, the fastest we expect first
    {"dtype": "bfloat16", "channels_last": True},
    PLAIN,
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "channels_last": True, "compile": True},
]


def way_name(way: dict[str, Any]) -> str:
    return " ".join([way["dtype"], *(k for k in ("channels_last", "compile") if way.get(k))])


def backbone_for(way: dict[str, Any], device: torch.device, dry: bool) -> UNetBackbone:
    torch.manual_seed(0)
    net = UNet((32, 32), 1) if dry else UNet()
    backbone = UNetBackbone(net).to(device).eval().requires_grad_(False)
    if way != PLAIN:
        backbone.accelerate(**way)
    return backbone


def spec_for(backbone: UNetBackbone, codebook: Any, steps: int, vocab_size: int) -> CodecSpec:
    levels = schedule.log_uniform(*LEVELS, steps)
    return CodecSpec(
        backbone.name, backbone.fingerprint, schedule.falling(levels, P, 1), codebook=codebook, vocab_size=vocab_size, seed=7
    )


@torch.no_grad()
def network_alone(clock: Clock, backbone: UNetBackbone, levels: list[float], batch: int, graph: bool) -> dict[str, Any]:
    """Times of one network call for each of `levels`, one after the other on the same input, in one graph where wanted."""
    y = torch.randn(batch, 3, SIDE, SIDE, device=clock.device)

    def calls(_: int) -> Tensor:
        for sigma in levels:
            out = backbone(y, sigma)
        return out

    way = Graphed(calls, 1) if graph else None
    return clock.time(way.run if way else calls, 1, seconds=1.5)


def end_to_end(clock: Clock, call: Callable[[Tensor], Any], batches: list[Tensor]) -> dict[str, Any]:
    return clock.time(lambda i: call(batches[i]), len(batches), seconds=1.5)


def rows_of(
    way: dict[str, Any], clock: Clock, codebook: str, batch: int, steps: int, vocab_size: int, dry: bool
) -> list[dict]:
    """The rows encode and decode of one way, with and without graphs, each beside the network by itself."""
    backbone = backbone_for(way, clock.device, dry)
    spec = spec_for(backbone, codebook, steps, vocab_size)
    images = [torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=clock.device) for _ in range(4)]
    parameters = sum(p.numel() for p in backbone.parameters())
    decode_levels = [s.sigma for s in spec.schedule] + [spec.schedule[-1].sigma_next]
    rows, tokens, alone = [], {}, {}
    for name, levels in (("encode", decode_levels[:-1]), ("decode", decode_levels)):
        alone[name] = network_alone(clock, backbone, levels, batch, clock.cuda)
        rows.append(
            {
                "name": f"network {name} {way_name(way)} B={batch}",
                "times": {"network": alone[name]},
                "images_per_s": 1e3 * batch / alone[name]["median_ms"],
                "nfe": len(levels),
            }
        )
    for graphs in (True, False) if clock.cuda else (False,):
        codec = Codec(spec, backbone, graphs=graphs, effort=0)
        tokens[graphs] = [codec.encode(x) for x in images]
        if graphs and not len(codec.graphs):
            raise RuntimeError("the encode was not recorded as a graph")
        calls = {"encode": (codec.encode, images), "decode": (lambda t, c=codec: c.decode(t, (SIDE, SIDE)), tokens[graphs])}
        for name, (call, batches) in calls.items():
            times = end_to_end(clock, call, batches)
            network = alone[name]["median_ms"]
            rows.append(
                {
                    "name": f"{name} {codebook} {way_name(way)} {'graph' if graphs else 'plain'} B={batch}",
                    "verb": name,
                    "codebook": codebook,
                    "way": way,
                    "graphs": graphs,
                    "batch": batch,
                    "steps": steps,
                    "vocab_size": vocab_size,
                    "parameters": parameters,
                    "times": {"total": times},
                    "network_ms": network,
                    "images_per_s": 1e3 * batch / times["median_ms"],
                    "share_outside": 1 - network / times["median_ms"],
                    "of_network_speed": network / times["median_ms"],
                }
            )
    if len(tokens) == 2:
        same = [bool(torch.equal(a, b)) for a, b in zip(tokens[True], tokens[False], strict=True)]
        for row in (r for r in rows if "verb" in r):
            row["graph_tokens_equal_plain"] = all(same)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file (JSON)")
    parser.add_argument("--minutes", type=float, default=10.0, help="when to stop starting ways")
    parser.add_argument("--batch", type=int, help="images of a batch (default 256, on a CPU 4)")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    cuda = torch.cuda.is_available() and not options.dry
    device = torch.device("cuda" if cuda else "cpu")
    clock = Clock(device, (5, 50)) if cuda else Clock(device, (2 if options.dry else 3, 5))
    batch = options.batch or (256 if cuda else 2 if options.dry else 4)
    steps, vocab_size = (2, 1 << 8) if options.dry else (10, 1 << 21)
    result: dict[str, Any] = {
        **provenance(0, device.type),
        "dry": options.dry,
        "about": "Medians and quartiles in ms of whole batches; float32 convolutions may use TF32, as torch does by default",
        "rows": [],
        "left_out": [],
        "failed": [],
    }
    ways = WAYS if cuda else [PLAIN]
    cases = [(way, "hadamard") for way in ways[:2]] + [(ways[0], "independent")] + [(way, "hadamard") for way in ways[2:]]
    if not cuda:  # dense codewords of this many take a CPU minutes a step
        cases = [(PLAIN, "hadamard")]
    longest = 0.0
    for way, codebook in cases:
        name = f"{codebook} {way_name(way)}"
        if time.monotonic() - begin + longest > 0.9 * 60 * options.minutes:
            result["left_out"].append(name)
            continue
        started = time.monotonic()
        try:
            known = {row["name"] for row in result["rows"]}  # the network by itself is timed once more beside each codebook
            rows = rows_of(way, clock, codebook, batch, steps, vocab_size, options.dry)
            result["rows"] += [row for row in rows if row["name"] not in known]
        except Exception as error:
            traceback.print_exc()
            result["failed"].append({"name": name, "error": f"{type(error).__name__}: {error}"[:500]})
        longest = max(longest, time.monotonic() - started)
        for row in result["rows"]:
            if "share_outside" in row and row["way"] == way and row["codebook"] == codebook:
                print(f"{row['name']:60s} {row['images_per_s']:10.1f} images/s  outside {100 * row['share_outside']:5.1f} %")
        save(options.file, result)
    return 1 if result["failed"] or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
