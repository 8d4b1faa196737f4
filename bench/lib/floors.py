"""The least time each kernel can take on one H200: computed from instruction counts and traffic, measured nowhere.

python tests/triton_offline.py 90 > compiled.json     # what the compiler makes of the kernels, without a GPU
python -m bench.lib.floors --compiled compiled.json   # writes bench/results/floors.json with the instructions counted there
python -m bench.lib.floors                            # the same with nothing but the bounds below

One launch costs microseconds that stand in no floor: with one image most of them are far below what any call takes.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

from bench.lib.record import RESULTS, save

SM = 132  # multiprocessors
CLOCK = 1.98e9  # Hz
ISSUE = 128  # instructions of one thread that a multiprocessor starts a clock: 4 schedulers, 32 threads
HBM = 4.8e12  # bytes a second
L2 = 5.5e12  # bytes a second, L2 to the multiprocessors, as others measured it
BF16 = 790e12  # operations a second of the matrix units, as measured on such devices
INT8 = 1.58e15
SIGNS = 24.8e12  # random signs a second as int8, bound by the integer pipe: Philox and one bit each (.98 instructions)
PHILOX = 9.6  # instructions for one 32-bit word
SHARED = 15  # log2 of the float32 entries that fit a multiprocessor's shared memory
HADAMARD = 12.5  # instructions a codeword at P = 4096: two 64 x 64 x 64 products, signs, the running maximum
BUTTERFLY = 1.0  # instructions a codeword for every further bit of P: one addition
INDEPENDENT = 0.98  # instructions for each sign of a codeword
LOG = 65.0  # instructions of a float64 logarithm as compiled for sm_80, which are fewer than for sm_90 (81)

#: codebook -> log2 P -> instructions per codeword (hadamard) or per sign (independent)
Instructions = dict[str, dict[str, float]]
SIZES = (3072, 16384, 786432)
BATCHES = (1, 16, 64, 256, 1024)
CODEBOOKS = ("hadamard", "independent")


def padded(d: int) -> int:
    """P: the smallest power of two >= d."""
    return 1 << (d - 1).bit_length()


def instructions(codebook: str, d: int, counted: Instructions | None = None) -> float:
    """Instructions a codeword of `hadamard`, or a sign of `independent`: as counted for this P, or the bound."""
    logp = padded(d).bit_length() - 1
    found = (counted or {}).get(codebook, {}).get(str(logp))
    if found is not None:
        return found
    return HADAMARD + BUTTERFLY * max(0, logp - 12) if codebook == "hadamard" else INDEPENDENT


def matrix_flop(p: int) -> int:
    """Operations a codeword when H of size P is done as few matrix products of at most 64 rows: 256 at P = 4096."""
    logp = p.bit_length() - 1
    count = max(1, -(-logp // 6))
    return 2 * sum(1 << (logp * (i + 1) // count - logp * i // count) for i in range(count))


def select(
    codebook: str, d: int, codewords: int, batch: int, bins: int = 1, bias: bool = False, counted: Instructions | None = None
) -> dict[str, float]:
    """Floors in ms of one search by what binds: {issue, tensor, generation, l2, hbm}.

    d: dimensions of a view; codewords: atoms of all bins and bases of one image; the codebook is made once for the
    batch. `tensor` of `hadamard` is for transforms as matrix products; butterflies leave the matrix units alone, but
    need more instructions than that takes."""
    p = padded(d)
    slots = SM * CLOCK * ISSUE
    residual, rotated, tokens = 4 * batch * d, 4 * batch * p, 8 * batch * bins
    count = instructions(codebook, d, counted)
    if codebook == "hadamard":
        issue = codewords * batch * count / slots
        tensor = codewords * batch * matrix_flop(p) / BF16
        generation = codewords / 32 * PHILOX / slots
        passes = -(-(p.bit_length() - 1) // SHARED)
        traffic = residual + 2 * rotated + 8 * codewords * batch * (passes - 1)  # a pass more writes and reads each score
    else:
        issue = codewords * p * count / slots
        tensor = 2 * codewords * p * max(16, batch) / INT8  # the matrix unit's narrowest tile takes 8 or 16 images
        generation = codewords * p / SIGNS
        traffic = residual + 2 * rotated + batch * p
    extra = 4 * codewords if bias else 0
    l2 = (traffic + tokens + extra * batch) / L2
    hbm = (residual + tokens + extra) / HBM
    return {"issue": 1e3 * issue, "tensor": 1e3 * tensor, "generation": 1e3 * generation, "l2": 1e3 * l2, "hbm": 1e3 * hbm}


def update(codebook: str, d: int, codewords: int, batch: int, bins: int, backtrace: bool) -> dict[str, float]:
    """Floors in ms of `noise` and `backtrace`: the signs of every base or codeword that a token names, one transform, and
    the traffic of tokens, states and the answer."""
    p = padded(d)
    logp = p.bit_length() - 1
    traffic = 8 * batch * bins + 4 * batch * d * (3 if backtrace else 1)
    vectors = min(bins, max(1, codewords // p)) if codebook == "hadamard" else bins
    count = p * logp + vectors * p / 32 * PHILOX + d * (4 if backtrace else 1)  # add; flip; scale and mix
    l2 = traffic + 8 * batch * p * (-(-logp // SHARED) - 1)
    return {"issue": 1e3 * batch * count / (SM * CLOCK * ISSUE), "l2": 1e3 * l2 / L2, "hbm": 1e3 * traffic / HBM}


def arrival(codewords: int, chunks: int) -> dict[str, float]:
    """Floors in ms of `arrival_bias`: of each time a word, two logarithms and an addition, and the answer."""
    count = chunks * codewords
    return {"issue": 1e3 * count * (PHILOX + 2 * LOG + 1) / (SM * CLOCK * ISSUE), "hbm": 1e3 * 4 * count / HBM}


def order(d: int) -> dict[str, float]:
    """Floors in ms of `chunk_places`: of each dimension a word, four passes of a sort of it with its number, two answers."""
    passes, entry = 4, 4 + 8  # of eight bits
    l2 = 2 * passes * entry * d / L2
    return {"issue": 1e3 * d * PHILOX / (SM * CLOCK * ISSUE), "l2": 1e3 * l2, "hbm": 1e3 * 2 * 8 * d / HBM}


def binding(floors: dict[str, float]) -> tuple[str, float]:
    """(what binds, ms)."""
    name = max(floors, key=lambda k: floors[k])
    return name, floors[name]


def of_kernel(
    kernel: str, codebook: str, d: int, codewords: int, batch: int, bins: int, counted: Instructions | None = None
) -> dict[str, float]:
    """Floors of the kernel `CODEBOOK_KERNEL`; kernel: select, refined, chain, top, biased, noise or backtrace; bins: tokens
    per view. `refined`, and `chain`, the same in plain torch, search each atom once, in views of a quarter of P. Of
    `arrival_bias` and `chunk_places` bins are the chunks."""
    if codebook in ("arrival", "chunk"):
        return arrival(codewords, bins) if codebook == "arrival" else order(d)
    if kernel in ("refined", "chain"):
        return select(codebook, max(1, padded(d) // 4), codewords, batch, bins, counted=counted)
    if kernel in ("noise", "backtrace"):
        return update(codebook, d, codewords, batch, bins, kernel == "backtrace")
    return select(codebook, d, codewords, batch, bins, kernel == "biased", counted)


def table(counted: Instructions | None = None) -> list[dict[str, Any]]:
    """Every size, codebook and batch at K = 2^20, and K = 2^30 for one image."""
    rows = []
    cases = [(codebook, d, 20, batch) for codebook in CODEBOOKS for d in SIZES for batch in BATCHES]
    cases += [(codebook, d, 30, 1) for codebook in CODEBOOKS for d in SIZES]
    for codebook, d, logk, batch in cases:
        floors = select(codebook, d, 1 << logk, batch, counted=counted)
        name, least = binding(floors)
        rows.append(
            {
                "codebook": codebook,
                "d": d,
                "p": padded(d),
                "codewords": 1 << logk,
                "batch": batch,
                "instructions": instructions(codebook, d, counted),
                "floors_ms": floors,
                "binds": name,
                "floor_ms": least,
            }
        )
    return rows


def result(counted: Instructions | None = None) -> dict[str, Any]:
    names = (
        "SM",
        "CLOCK",
        "ISSUE",
        "HBM",
        "L2",
        "BF16",
        "INT8",
        "SIGNS",
        "PHILOX",
        "SHARED",
        "HADAMARD",
        "BUTTERFLY",
        "INDEPENDENT",
    )
    return {
        "about": "Computed floors of one search on one H200 in ms; nothing here was measured on a GPU",
        "computed": True,
        "measured": False,
        "constants": {name.lower(): globals()[name] for name in names},
        "counted_instructions": counted or {},
        "rows": table(counted),
    }


@functools.cache
def committed() -> Instructions:
    """The instructions that bench/results/floors.json was computed with."""
    return json.loads((RESULTS / "floors.json").read_text())["counted_instructions"]


def count(compiled: list[dict[str, Any]]) -> Instructions:
    """Instructions in the inner loop of the searches, from what tests/triton_offline.py prints: the least for each P of
    `hadamard`; of `independent`, whose loop does not know P, the least for any tile."""
    hadamard: dict[str, float] = {}
    independent: list[float] = []
    for entry in compiled:
        shape, loops = entry["shape"], entry.get("loops", [])
        if not loops:
            continue
        threads = 32 * shape["num_warps"]
        whole = entry["kernel"] == "hadamard.search_kernel" and shape["LOGN"] == shape["LOGP"]
        if whole and not shape["BIASED"] and not shape.get("SIGNED"):  # whose signs another kernel makes
            each = threads * loops[0]["instructions"] / (shape["ROWS"] << shape["LOGN"])
        elif entry["kernel"] == "matrix.matrix_kernel":  # the loop with the products; the other one repeats a few bases
            each = threads * next(loop["instructions"] for loop in loops if loop["products"]) / (1 << shape["LOGP"])
        else:
            if entry["kernel"] == "independent.search_kernel":
                independent.append(threads * loops[0]["instructions"] / (shape["K"] * 128 * shape["DRAWS"]))
            continue
        key = str(shape["LOGP"])
        hadamard[key] = min(each, hadamard.get(key, each))
    least = min(independent, default=INDEPENDENT)
    return {"hadamard": hadamard, "independent": {str(padded(d).bit_length() - 1): least for d in SIZES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", type=Path, help="what tests/triton_offline.py printed")
    options = parser.parse_args()
    written = result(count(json.loads(options.compiled.read_text())) if options.compiled else None)
    save(RESULTS / "floors.json", written)
    names = "  ".join(f"{name:>10}" for name in written["rows"][0]["floors_ms"])
    print("codebook          D       K        B   floor ms  binds      ", names)
    for row in written["rows"]:
        size = f"{row['codebook']:12s} {row['d']:<7d} 2^{math.log2(row['codewords']):.0f} {row['batch']:5d}"
        values = "  ".join(f"{v:10.4f}" for v in row["floors_ms"].values())
        print(f"{size} {row['floor_ms']:10.4f}  {row['binds']:11s} {values}")


if __name__ == "__main__":
    main()
