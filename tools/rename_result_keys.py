"""Gives the keys of bench/results today's names: python tools/rename_result_keys.py [--check]

Results that were measured with the names of before stay: only keys change, and each file's own layout is kept. Values,
dates and commands are as they were, so a quoted command has the options of its day. A second run changes nothing.

Left as they are: a specification's own JSON, whose names are hashed; the verdicts of the fuzz test, which are names that
the reader gives; `bins` of a call of a kernel, which is the number of bins. Everywhere else `bins` was the budget of a step.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "bench/results"
NAMES = {
    "bins_last": "budget_last",
    "calls": "nfe",
    "decode_calls": "decode_nfe",
    "encode_calls": "encode_nfe",
    "finish": "solver",
    "finish_steps": "solver_steps",
    "lam": "sigma",
    "lam_max": "sigma_max",
    "lam_min": "sigma_min",
    "law": "codebook",
    "log_vocabulary": "log_vocab_size",
    "start_bins": "start_budget",
    "start_vocabulary": "start_vocab_size",
    "vocabulary": "vocab_size",
}
OF_KERNELS = ("gpu_kernels", "select_cpu")  # files in which `bins` counts the bins of a call
SPEC, NOT_OURS = "noisebook_spec", "verdicts"


def settings_key(settings: Any) -> str:
    """What a row of the paper's experiments is found by: it follows from the names in its settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def renamed(value: Any, names: dict[str, str]) -> Any:
    """The same with other keys, in the same order."""
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    if not isinstance(value, dict) or SPEC in value:
        return value
    out: dict[str, Any] = {}
    for key, old in value.items():
        new = old if key == NOT_OURS else renamed(old, names)
        name = names.get(key, key)
        if isinstance(old, dict) and "settings" in old and key == settings_key(old["settings"]):
            name = settings_key(new["settings"])
        if name in out:
            raise ValueError(f"two keys become {name!r}")
        out[name] = new
    return out


def rewritten(text: str, names: dict[str, str]) -> str:
    """A result file with other keys. Raises ValueError for a layout that would not come out as it was."""
    value = json.loads(text)
    for indent, end in ((1, "\n"), (4, "")):  # of record.save, and of pytest-benchmark
        if json.dumps(value, indent=indent) + end == text:
            return json.dumps(renamed(value, names), indent=indent) + end
    raise ValueError("unknown layout")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where an old name is left")
    args = parser.parse_args()
    left = []
    for path in sorted(RESULTS.glob("*.json")):
        names = NAMES if path.stem in OF_KERNELS else {**NAMES, "bins": "budget"}
        old = path.read_text()
        new = rewritten(old, names)
        if new != old:
            left.append(path.name)
            if not args.check:
                path.write_text(new)
    print(f"{'with an old name' if args.check else 'written'}: {', '.join(left) or 'none'}")
    return 1 if args.check and left else 0


if __name__ == "__main__":
    sys.exit(main())
