"""What every result file says of where it comes from: device, versions, date, command, seed.

python -m bench.lib.record machine FILE [--dry]               # only the machine
python -m bench.lib.record step FILE NAME EXIT_CODE SECONDS   # adds to that file how a step of gpu.sh ended
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results"
DATA = Path(os.environ.get("NOISEBOOK_DATA", ROOT.parent / "shared/data"))
SMI = "driver_version,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,power.limit,temperature.gpu"


def cpu_model() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def command_line() -> str:
    """How this process was called, as one would call it from the root of the checkout."""
    script = Path(sys.argv[0]).resolve()
    name = script.name
    if script.is_relative_to(ROOT):
        name = f"python -m {'.'.join(script.relative_to(ROOT).with_suffix('').parts)}"
    arguments = (a.rpartition("=") for a in sys.argv[1:])  # also NAME=PATH
    words = (f"{head}{sign}{shown(Path(a)) if os.path.isabs(a) else a}" for head, sign, a in arguments)
    return " ".join([name, *map(shlex.quote, words)])


def shown(path: Path) -> str:
    """A path inside the checkout from its root; the bare name of any other."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def gpu_facts(device: str) -> dict[str, Any]:
    """Multiprocessors, memory and, where nvidia-smi answers, driver, clocks (MHz), power limit (W), temperature (C)."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
    call = ["nvidia-smi", f"--id={torch.device(device).index or 0}", f"--query-gpu={SMI}", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return facts
    return facts | dict(zip(SMI.split(","), (value.strip() for value in line.split(",")), strict=False))


def provenance(seed: int | None, device: str = "cpu") -> dict[str, Any]:
    """Device, versions, date, command line and seed of this run."""
    import numpy
    import torch

    import noisebook

    cuda = device.startswith("cuda")
    versions = {
        "noisebook": noisebook.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
    if cuda:
        versions["triton"] = importlib.metadata.version("triton")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_model(),
        **({"gpu": gpu_facts(device)} if cuda else {}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": command_line(),
        "seed": seed,
    }


def save(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file whole or not at all: a run that is stopped leaves the last one that was complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(path)


def write(name: str, result: dict[str, Any], seed: int | None, device: str = "cpu") -> Path:
    """Writes bench/results/NAME.json with `result` and its provenance."""
    path = RESULTS / f"{name}.json"
    save(path, {**provenance(seed, device), **result})
    return path


def refuse_dry(result: dict[str, Any], name: str) -> None:
    """SystemExit(2) for a file of a dry run: its figures prove the script and say nothing of speed."""
    if result.get("dry"):
        print(f"{name} is of a dry run (tiny sizes on a CPU): no result", file=sys.stderr)
        raise SystemExit(2)


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    verb, path, *rest = sys.argv[1:]
    if verb == "machine":
        import torch

        device = "cuda" if torch.cuda.is_available() and "--dry" not in rest else "cpu"
        facts = {**provenance(None, device), "dry": "--dry" in rest, "steps": {}}
        save(Path(path), facts)
        print(json.dumps(facts))
    elif verb == "step":
        name, code, seconds = rest
        facts = json.loads(Path(path).read_text())
        facts["steps"][name] = {"exit_code": int(code), "seconds": int(seconds), "ok": code == "0"}
        save(Path(path), facts)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
