"""What files from strangers can do: hostile inputs of every kind through the real commands.

    python -m bench.reliability.hostile                # all of it; exit code 1 for any fault
    python -m bench.reliability.hostile --only plan    # only that kind; the others stay as they are
    python -m bench.reliability.hostile --trace 400    # that many under strace, which sees what Arrow opens, too
    python -m bench.reliability.hostile --report       # only write the page; --check: only say whether it is up to date

A grammar fills every field with values up to its limits and beyond, and seals the file again: all checksums are right. The
commands run in forked children under an audit hook, with a stub server on loopback and a `gs` on the PATH that says when it
is run. A fault is: code of the file's that ran, a connection, a file opened outside of the inputs and outputs, a file
replaced, a traceback, text that a terminal would obey, a temporary file left, more time or memory than is allowed.
Writes bench/results/hostile.json and a table of docs/reliability.md. Linux only. `tests/bench/test_hostile.py` runs a
sample.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib import page
from bench.lib.record import RESULTS, ROOT, command_line, write
from bench.reliability import hostile_dataset, hostile_models, hostile_nbk, hostile_pictures
from bench.reliability.hostile_kit import Maker, Place, own_cost, place, read_only, run, within

NAME, PAGE, SEED = "hostile", ROOT / "docs/reliability.md", 0
Result = dict[str, Any]
KINDS: dict[str, tuple[Maker, int, str]] = {  # the maker, how many, in words
    "nbk": (hostile_nbk.make, 7000, "`.nbk` files"),
    "plan": (hostile_dataset.make_plan, 3000, "plans"),
    "ledger": (hostile_dataset.make_ledger, 2000, "ledger entries"),
    "shard": (hostile_dataset.make_shard, 2500, "shards"),
    "checkpoint": (hostile_models.make_checkpoint, 1500, "checkpoints"),
    "folder": (hostile_models.make_folder, 500, "folders of diffusers"),
    "curve": (hostile_models.make_curve, 500, "curves"),
    "npz": (hostile_models.make_npz, 500, "archives `.npz`"),
    "picture": (hostile_pictures.make_picture, 2000, "pictures"),
    "many": (hostile_pictures.make_many, 700, "tars, Parquet files and folders of pictures"),
}


def prepare(where: Place) -> None:
    """What the makers need, made once; also warms what a child would otherwise do for the first time."""
    import io
    import platform

    import torch
    from PIL import Image
    from safetensors.torch import save

    from noisebook.backbones.registry import WEIGHTS
    from noisebook.images.io import png_bytes

    platform.processor()  # starts `uname`, once
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP")
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n({where.traps.ran}) (w) file closefile\n"
    where.base |= {
        "png": png_bytes(pixels),
        "webp": buffer.getvalue(),
        "eps": program.encode() + b"showpage\n",
        "curve": (WEIGHTS / "gaussian-prior.curve.json").read_text(),
        "checkpoints": {kind: hostile_models.tiny(kind) for kind in hostile_models.KINDS},
        "unet": unet(save),
    }
    where.clean()
    where.base["datasets"] = hostile_dataset.bases(where)
    where.base["own"] = {
        "inspect": own_cost(["inspect", str(ROOT / "tests/golden/poisson.nbk")]),
        "verify": own_cost(["verify", str(where.root / "base/ds0")]),
    }


def unet(save: Any) -> bytes:
    """The weights of the small UNet2DModel of `hostile_models.make_folder`; none without diffusers."""
    try:
        import diffusers
    except ImportError:
        return b""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    more = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    return save(diffusers.UNet2DModel(**more, **blocks).state_dict())


def job(kind: str, number: int, seed: int) -> list[list[int]]:
    """The seeds of the inputs of a kind."""
    return [[seed, list(KINDS).index(kind), i] for i in range(number)]


def sample(root: Path, kinds: dict[str, int], seed: int) -> Result:
    """Runs that many inputs of each kind in one place; what came of them, by kind."""
    with place(root) as where:
        prepare(where)
        out = {}
        for kind, count in kinds.items():
            begin = time.monotonic()
            found = run(where, KINDS[kind][0], job(kind, count, seed))
            out[kind] = summary(found, time.monotonic() - begin)
        contacts = where.traps.file.with_name("contacts")
        leaked = [name for name in ("contacts", "ran") if where.traps.file.with_name(name).exists()]
        return {
            "parts": out,
            "own": where.base["own"],
            "leaked": leaked,
            "contacts": len(contacts.read_text().split()) if contacts.exists() else 0,
        }


def summary(found: list[Result], seconds: float) -> Result:
    runs = [r for one in found for r in one["runs"]]
    light = [r for r in runs if r["verb"] in ("inspect", "verify")]
    faults = [
        {"seed": one["seed"], "verb": r["verb"], "note": one["note"], "problems": r["problems"]}
        for one in found
        for r in one["runs"]
        if r["problems"]
    ]
    return {
        "inputs": len(found),
        "passed": sum(one["passes"] for one in found),
        "commands": len(runs),
        "codes": {str(k): v for k, v in sorted(Counter(r["code"] for r in runs).items())},
        "slowest": max((r["seconds"] for r in runs), default=0.0),
        "largest": max((r["mib"] for r in runs), default=0.0),
        "light_slowest": max((r["seconds"] for r in light), default=0.0),
        "light_largest": max((r["mib"] for r in light), default=0.0),
        "seconds": seconds,
        "faults": faults,
    }


# ---- what Arrow and others open, by strace ------------------------------------------------------------------------------
CALL = re.compile(r"^\d+ +(?:\[pid +\d+\] )?(\w+)\((.*)")


def trace(count: int, seed: int) -> Result:
    """Runs `count` inputs of all kinds under strace: it sees every file, program and connection, whatever library asks."""
    if shutil.which("strace") is None:
        return {"skipped": "strace is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        root, log = Path(folder) / "place", Path(folder) / "log"
        watch = ["strace", "-f", "-qq", "-e", "trace=open,openat,creat,connect,execve", "-s", "300", "-o", str(log)]
        inner = [sys.executable, "-m", "bench.reliability.hostile", "--inner", str(root), "--count", str(count)]
        done = subprocess.run([*watch, *inner, "--seed", str(seed)], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return {"skipped": f"strace cannot run here: {done.stderr[-300:]}"}
        begun, problems, opened = False, [], 0
        allowed = (*read_only(), str(root))
        for line in log.read_text(errors="replace").splitlines():
            if match := CALL.match(line):
                name, rest = match.groups()
                begun = begun or f'"{root}/begin"' in rest
                if not begun:
                    continue
                path = next(iter(re.findall(r'"((?:[^"\\]|\\.)*)"', rest)), "")
                opened += name != "connect"
                outside = path.startswith("/") and not within(path, allowed)
                trap = "/traps/" in path and "contacts" not in path
                bad = "AF_UNIX" not in rest if name == "connect" else outside or trap or name == "execve"
                problems += [line[:300]] if bad else []
        return {"inputs": count, "opened": opened, "problems": problems[:50], "count": len(problems)}


def inner(root: Path, count: int, seed: int) -> None:
    """What runs under strace: everything is imported and made, then a file `begin`, then the inputs."""
    each = max(1, count // len(KINDS))
    with place(root) as where:
        prepare(where)
        (root / "begin").write_text("")
        for kind in KINDS:
            run(where, KINDS[kind][0], job(kind, each, seed + 1))


# ---- the page -----------------------------------------------------------------------------------------------------------
def hostile() -> str:
    found = page.load(NAME)
    rows = []
    for kind, (_, _, words) in KINDS.items():
        part = found["parts"][kind]
        light = f"{part['light_slowest']:.1f} s, {part['light_largest']:.0f} MiB" if part["light_slowest"] else ""
        rows.append(
            [
                words,
                f"{part['inputs']:,}",
                f"{100 * part['passed'] / part['inputs']:.0f} %",
                f"{part['commands']:,}",
                light,
                f"{part['slowest']:.1f} s, {part['largest']:.0f} MiB",
                str(len(part["faults"])),
            ]
        )
    head = [
        "kind",
        "inputs",
        "pass checksum and parser",
        "commands run",
        "most for `inspect`, `verify`",
        "most for any",
        "faults",
    ]
    total = sum(part["inputs"] for part in found["parts"].values())
    traced = found["trace"]
    arrow = traced.get("skipped") or (
        f"{traced['inputs']:,} of them under strace: {traced['opened']:,} files opened or programs started, "
        f"{traced['count']} of them outside of what was given"
    )
    text = page.table(head, rows)
    note = (
        f"{total:,} inputs, {found['contacts']} connections to the stub server; {arrow}. "
        "Memory of `inspect` and `verify` includes the interpreter's; of the others it is what they add to it."
    )
    return f"{text}\n\n{note} {page.source(found, NAME)}"


TABLES = {"hostile": hostile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=KINDS, help="only this kind; the others stay as they are")
    parser.add_argument("--count", type=int, help="that many inputs of each kind; nothing is written")
    parser.add_argument("--trace", type=int, default=800, help="inputs under strace (default: 800; 0: none)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=1, help="at once (default: 1)")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    page.add_options(parser)
    args = parser.parse_args()
    if args.report or args.check:
        page.fill(PAGE, TABLES, args.check)
        return
    if args.inner:
        inner(args.inner, args.count, args.seed)
        return
    kinds = {kind: args.count or KINDS[kind][1] for kind in (args.only or KINDS)}
    result = measured(kinds, args.seed, args.processes)
    faults = [f for part in result["parts"].values() for f in part["faults"]]
    for fault in faults[:200]:
        print(json.dumps(fault)[:600])
    for kind, part in result["parts"].items():
        print(kind, {k: v for k, v in part.items() if k != "faults"}, len(part["faults"]), "faults")
    if args.count is None:
        old = json.loads((RESULTS / f"{NAME}.json").read_text()) if args.only and (RESULTS / f"{NAME}.json").exists() else {}
        result["parts"] = {**old.get("parts", {}), **result["parts"]}
        result["trace"] = trace(args.trace, args.seed) if args.trace else old.get("trace", {"skipped": "not run"})
        result["command"] = command_line()
        write(NAME, result, args.seed)
        print(result["trace"])
        if faults or result["leaked"] or result["contacts"] or result["trace"].get("count"):
            raise SystemExit(1)
        if result["parts"].keys() == KINDS.keys():
            page.fill(PAGE, TABLES, check=False)
    elif faults or result["leaked"]:
        raise SystemExit(1)


def measured(kinds: dict[str, int], seed: int, processes: int) -> Result:
    """All inputs; with several processes each takes a share of every kind, in a place of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if processes == 1:
            return sample(Path(folder) / "place", kinds, seed)
        calls = []
        for i in range(processes):
            share = {kind: len(range(i, count, processes)) for kind, count in kinds.items()}
            where, answer = str(Path(folder) / str(i)), str(Path(folder) / f"{i}.json")
            code = (
                "import json; from pathlib import Path; from bench.reliability.hostile import sample; "
                f"Path({answer!r}).write_text(json.dumps(sample(Path({where!r}), {share!r}, {seed * 1000 + i})))"
            )
            calls.append([sys.executable, "-c", code])
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda call: subprocess.run(call, cwd=ROOT, check=True, env=dict(os.environ)), calls))
        return merged([json.loads((Path(folder) / f"{i}.json").read_text()) for i in range(processes)])


def merged(parts: list[Result]) -> Result:
    out: Result = {"parts": {}, "own": parts[0]["own"], "leaked": [], "contacts": 0}
    for part in parts:
        out["leaked"] += part["leaked"]
        out["contacts"] += part["contacts"]
        for kind, new in part["parts"].items():
            old = out["parts"].setdefault(kind, {})
            for key, value in new.items():
                if key == "codes":
                    both = Counter(old.get(key, {})) + Counter(value)
                    old[key] = dict(sorted(both.items()))
                elif key in ("slowest", "largest", "light_slowest", "light_largest"):
                    old[key] = max(old.get(key, 0.0), value)
                else:
                    old[key] = old[key] + value if key in old else value
    return out


if __name__ == "__main__":
    main()
