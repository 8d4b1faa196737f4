"""What got slower: python -m bench.speed.compare OLD.json NEW.json [--threshold .05]

Rows are matched by name. A row is slower (faster) when its median is and the quartiles of the two runs do not overlap.
Exit code 1 if a row got slower by more than the threshold, 2 if the files cannot be compared: dry runs, other devices.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

Times = dict[str, tuple[float, float, float]]  # row -> (lower quartile, median, upper quartile), in ms


def refuse(message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def times_of(result: dict[str, Any]) -> Times:
    """Every timed row of a result file: those of bench/gpu.sh, and of pytest-benchmark."""
    rows = {}
    for row in [*result.get("rows", []), *result.get("baselines", [])]:
        for way, t in row.get("times", {}).items():
            rows[f"{row['name']} [{way}]"] = (t["q1_ms"], t["median_ms"], t["q3_ms"])
    for entry in result.get("benchmarks", []):
        stats = entry["stats"]
        rows[entry["name"]] = (1e3 * stats["q1"], 1e3 * stats["median"], 1e3 * stats["q3"])
    return rows


def check(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Exits with code 2 unless both are measurements on the same kind of device."""
    for name, result in (("OLD", old), ("NEW", new)):
        if result.get("dry"):
            refuse(f"{name} is of a dry run (tiny sizes on a CPU): nothing to compare")
    devices = [result.get("device") for result in (old, new)]
    if devices[0] != devices[1] or devices[0] is None:
        refuse(f"the files are of different devices: {devices[0]} and {devices[1]}")


def compare(old: Times, new: Times, threshold: float) -> tuple[list[str], bool]:
    """(one line for each row that changed beyond the spread or stands in one file only, whether any is too slow)."""
    lines, too_slow = [], False
    for name in old.keys() & new.keys():
        (a1, a, a3), (b1, b, b3) = old[name], new[name]
        change = f"{name}: {a:.4g} -> {b:.4g} ms, {abs(b / a - 1):.1%}"
        if b > a and b1 > a3:
            over = b > (1 + threshold) * a
            too_slow |= over
            lines.append(f"{'SLOWER' if over else 'slower'}  {change}")
        elif b < a and b3 < a1:
            lines.append(f"faster  {change}")
    lines += [f"only in OLD  {name}" for name in old.keys() - new.keys()]
    lines += [f"only in NEW  {name}" for name in new.keys() - old.keys()]
    return sorted(lines), too_slow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=float, default=0.05, help="share that a row may get slower (default .05)")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    check(old, new)
    before, after = times_of(old), times_of(new)
    both = len(before.keys() & after.keys())
    if not both:
        refuse("the files have no row in common")
    lines, too_slow = compare(before, after, options.threshold)
    lines.append(f"{both} rows in both, {len(lines)} lines above; the others did not change beyond their spread")
    print("\n".join(lines))
    return 1 if too_slow else 0


if __name__ == "__main__":
    sys.exit(main())
