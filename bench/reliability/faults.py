"""What a data set survives: kills, full disks, inputs that change, bad pictures, dead workers, flipped bits.

    python -m bench.reliability.faults                # all of it, half an hour on one slow core; exit code 1 for any fault
    python -m bench.reliability.faults --only zoo     # only that part; the others stay as they are
    python -m bench.reliability.faults --report       # only write the page; --check: only say whether it is up to date

A tiny codec on small pictures; each run is killed, starved or fed with damage, resumed, and compared with one that was not.
Writes bench/results/faults.json and the tables of the section "Data sets" of docs/reliability.md.
`tests/bench/test_faults.py` runs a sample of each part. Linux only.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.lib import page
from bench.lib.record import RESULTS, ROOT, command_line, write
from bench.reliability import faults_bits as bits
from bench.reliability import faults_inputs as inputs
from bench.reliability import faults_kill as kill
from bench.reliability import faults_ray, faults_zoo
from bench.reliability.faults_kit import Ground, ground

NAME, PAGE, SEED = "faults", ROOT / "docs/reliability.md", 0
Result = dict[str, Any]


def full_disk(base: Ground) -> Result:
    if kill.can_mount(base.folder / "probe"):
        return kill.small_disks(base, range(4, 88, 4))
    return {"skipped": "nothing can be mounted here", "tried": 0, "filled": 0, "faults": []}


def with_ray(work: Callable[[], Result]) -> Result:
    with faults_ray.ray_here():
        return work()


PARTS: dict[str, Callable[[Ground], Result]] = {
    "random_kills": lambda base: kill.random_kills(base, trials=40, kills=300, seed=SEED),
    "command_kills": lambda base: kill.command_kills(base, kills=40, seed=SEED),
    "kill_at_every_step": lambda base: kill.every_step(base, "kill"),
    "full_at_every_step": lambda base: kill.every_step(base, "full"),
    "small_disk": full_disk,
    "small_files": lambda base: kill.small_files(base, range(200, 5000, 200)),
    "inputs": inputs.inputs_run,
    "refusals": inputs.refusals,
    "zoo": faults_zoo.zoo_run,
    "deaths": inputs.deaths,
    "damaged": bits.damaged_files,
    "remade": lambda base: bits.remade(base, 48),
    "same_again": bits.same_again,
    "classes": lambda base: bits.classes(64, SEED),
    "ray_kills": lambda base: with_ray(
        lambda: faults_ray.kills(base, shards=40, count=6, seed=SEED)
    ),  # last: it leaves threads
    "ray_poison": lambda base: with_ray(lambda: faults_ray.poison(base)),
    "ray_commands": lambda base: faults_ray.commands(base, shards=40, kills=6, drivers=3, seed=SEED),
}


# ---- tables -------------------------------------------------------------------------------------------------------------
def results() -> Result:
    return page.load(NAME)["parts"]


def summary() -> str:
    found, rows = results(), []

    def row(what: str, part: str, tried: str) -> None:
        rows.append([what, tried, str(len(found[part]["faults"]))])

    random, command = found["random_kills"], found["command_kills"]
    phases = ", ".join(f"{count} in {name}" for name, count in random["phases"].items())
    row(
        "SIGKILL at a random time, of a forked run",
        "random_kills",
        f"{random['kills']} kills of {random['trials']} data sets ({phases})",
    )
    row(
        "SIGKILL at a random time, of the command",
        "command_kills",
        f"{command['kills']} kills of {command['trials']} data sets",
    )
    row("SIGKILL at every step of writing", "kill_at_every_step", _steps(found["kill_at_every_step"]))
    row("no space left at every step of writing", "full_at_every_step", _steps(found["full_at_every_step"]))
    disk, files = found["small_disk"], found["small_files"]
    row(
        "a real disk too small",
        "small_disk",
        disk.get("skipped") or f"{disk['tried']} sizes, {disk['filled']} of them filled up",
    )
    row("a limit on the size of files", "small_files", f"{files['tried']} sizes, {files['filled']} of them reached")
    row("inputs that cannot be read, or change", "inputs", f"{found['inputs']['tried']} cases, below")
    row("`--resume` on another input or with other settings", "refusals", f"{found['refusals']['tried']} cases")
    row("bad pictures", "zoo", f"{found['zoo']['tried']}, below")
    row("pictures that kill or hang their worker", "deaths", f"{found['deaths']['tried']}")
    row("bits flipped and files cut", "damaged", f"{found['damaged']['tried']:,}, below")
    row("damaged shards and ledger entries made again", "remade", str(found["remade"]["tried"]))
    row("the same run again, with 0, 1 and 2 workers", "same_again", f"{found['same_again']['tried']} runs")
    ray = found["ray_kills"]
    row("SIGKILL of actors of Ray at work", "ray_kills", f"{ray['kills']} kills, a data set of {ray['shards']} shards")
    real = found["ray_commands"]
    row(
        "the same of the command with a separate Ray, and of the command itself",
        "ray_commands",
        f"{real['kills']} kills of actors in a data set of {real['shards']} shards, {real['driver_kills']} of the command "
        "in another",
    )
    row("a picture that kills every actor of Ray", "ray_poison", "1 data set, and again with `--resume`")
    left = random["orphans"] + command["orphans"] + real["orphans"]
    note = f"{left} worker processes outlived the runs and commands that were killed at random times"
    text = page.table(["fault", "tried", "failures"], rows)
    return f"{text}\n\n{note}. {page.source(page.load(NAME), NAME)}"


def _steps(part: Result) -> str:
    calls = ", ".join(f"{count} {name}" for name, count in sorted(part["by_call"].items()))
    return (
        f"all {part['steps']} steps ({calls})" if part["tried"] == part["steps"] else f"{part['tried']} of {part['steps']}"
    )


def case_table() -> str:
    rows = [
        [case["case"], ", ".join(f"`{c}`" for c in case["codes"]) or "none", str(case["rows"]), str(case["exit"])]
        for case in results()["inputs"]["cases"]
    ]
    return page.table(["input", "code in the ledger", "rows", "exit code"], rows)


def zoo_table() -> str:
    rows = [
        [
            f"`{m['member']}`",
            ", ".join(f"`{c}`" for c in m["code"].split(", ")) if m["code"] else "none: a good picture",
            "yes" if m["tokens"] else "no",
        ]
        for m in results()["zoo"]["members"]
    ]
    return page.table(["picture", "failure or remark in the ledger", "tokens"], rows)


def bit_table() -> str:
    names = ("found", "harmless", "wrong metadata alone", "wrong", "crash or hang")
    rows = [
        [f"`{r['file']}`", r["reader"], r["damage"], f"{r['tried']:,}", *(f"{r.get(name, 0):,}" for name in names)]
        for r in results()["damaged"]["rows"]
    ]
    return page.table(
        ["file", "read by", "damage", "tried", "found", "nothing changes", "other footer text", "other rows", "reader dies"],
        rows,
    )


def class_table() -> str:
    part, rows = results()["classes"], []
    for number, r in enumerate(part["rows"]):
        apart = "the same" if r["worst_psnr"] is None else f"{r['worst_psnr']:.1f} dB"
        what = ("compared with", "the same call again")[number] if number < 2 else ""
        rows.append(
            [
                f"{r['threads']}",
                str(r["batch"]),
                what,
                f"{r['other_tokens']:,} of {r['tokens']:,}",
                f"{r['other_values']:,} of {r['values']:,}",
                apart,
            ]
        )
    text = page.table(["threads", "batch", "", "other tokens", "other 8-bit values of a decode", "worst PSNR between"], rows)
    return f"{text}\n\n`{part['backbone']}`, {part['images']} images of {part['side']} x {part['side']}."


TABLES: page.Tables = {
    "faults": summary,
    "fault_inputs": case_table,
    "fault_zoo": zoo_table,
    "fault_bits": bit_table,
    "fault_classes": class_table,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="the other parts stay as they are")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return 0
    torch.set_num_threads(1)  # a process with threads cannot be forked
    path = RESULTS / f"{NAME}.json"
    parts: dict[str, Result] = json.loads(path.read_text())["parts"] if path.exists() and args.only else {}
    for name in args.only or PARTS:
        with ground(SEED) as base:
            parts[name] = {**bits.timed(lambda name=name, base=base: PARTS[name](base)), "command": command_line()}  # type: ignore[misc]
        print(
            f"{time.strftime('%H:%M:%S')} {name}: {len(parts[name]['faults'])} failures, {parts[name]['seconds']} s",
            flush=True,
        )
        for fault in parts[name]["faults"][:10]:
            print(f"  {fault}", flush=True)
        if set(parts) >= set(PARTS) or not args.only:
            write(NAME, {"about": "a tiny codec, pictures of 16 x 16, shards of 8", "parts": parts}, SEED)
    if set(parts) == set(PARTS):
        page.fill(PAGE, TABLES, False)
    return 1 if any(part["faults"] for part in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
