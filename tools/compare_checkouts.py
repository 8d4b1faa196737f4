"""Compares what two checkouts of noisebook compute, bit for bit: python tools/compare_checkouts.py OLD NEW [--quick]

For a change that must not change results: each checkout encodes and decodes the same pictures in a process of its own, with
every rule, solver and shipped backbone, and the SHA-256 of all tokens, pictures, files and specifications are compared.
Both checkouts need their C++ extension built, or neither. The exit code is 0 where all is equal, 1 for any difference and 2
where a checkout could not be tried.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from checkout_cases import Cases, Facts


# ---- the parent: two children and their differences ------------------------------------------------------------------
def differences(old: dict[str, Facts], new: dict[str, Facts]) -> list[str]:
    """One line for each fact that is not the same on both sides, and for each case that only one side has."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name}: only in {'NEW' if name in new else 'OLD'}")
            continue
        for fact in sorted(old[name].keys() | new[name].keys()):
            a, b = old[name].get(fact, "nothing"), new[name].get(fact, "nothing")
            if a != b:
                lines.append(f"{name}: {fact}: {a[:16]} in OLD, {b[:16]} in NEW")
    return lines


def run_child(checkout: Path, options: list[str]) -> dict[str, Any] | None:
    """What the child of a checkout found, None where it ended without a word."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(checkout / folder) for folder in ("engine", "kernels")),
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written into a checkout
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--child", str(checkout), *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, nargs="?", metavar="OLD", help="a checkout, its extension built")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW", help="another one")
    parser.add_argument("--quick", action="store_true", help="the cases that take the least time: about 20 s a checkout")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases whose name matches, such as 'rule/*'")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        return child(args.child, args.quick, args.only, args.device)
    if args.new is None:
        parser.error("two checkouts are needed: OLD NEW")
    options = ["--only", args.only, "--device", args.device, *(["--quick"] if args.quick else [])]
    found = [run_child(path.resolve(), options) for path in (args.old, args.new)]
    old, new = found
    if old is None or new is None:
        print(f"{args.old if old is None else args.new}: could not be tried; its error stands above")
        return 2
    if old["extension"] != new["extension"]:
        print("the C++ extension is built in one checkout only: build it in both (setup.py build_ext --inplace)")
        return 2
    failed = {*old["failed"], *new["failed"]}
    old, new = ({name: case for name, case in one["cases"].items() if name not in failed} for one in found)
    if not old and not new and not failed:
        print(f"no case matches {args.only!r}")
        return 2
    lines = differences(old, new)
    for line in lines:
        print(line)
    facts, cases = sum(map(len, old.values())), {line.split(": ")[0] for line in lines}
    print(f"{len(old)} cases, {facts} hashes: {len(lines)} differences in {len(cases)} cases")
    if failed:
        print(f"{len(failed)} cases more ended with an error, which stands above: {', '.join(sorted(failed))}")
        return 2
    return 1 if lines else 0


# ---- the child: the cases of one checkout ----------------------------------------------------------------------------
def child(checkout: Path, quick: bool, pattern: str, device: str) -> int:
    """Prints {"extension", "cases", "failed"} of the noisebook in `checkout`; 1 where it is not there."""
    import torch

    import noisebook

    if not Path(noisebook.__file__).resolve().is_relative_to(checkout / "engine"):
        print(f"{checkout}: `import noisebook` found {noisebook.__file__} instead", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that quality stalls, for recipes this small
    found, failed = {}, []
    for name, is_quick, compute in Cases(device).all():
        if (quick and not is_quick) or not fnmatch.fnmatch(name, pattern):
            continue
        try:
            found[name] = compute()
        except Exception:
            print(f"{checkout}: case {name}:\n{traceback.format_exc()}", file=sys.stderr)
            failed.append(name)
    print(json.dumps({"extension": find_spec("noisebook._C") is not None, "cases": found, "failed": failed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
