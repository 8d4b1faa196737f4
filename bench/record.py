"""What every result file says of where it comes from: device, versions, date, command, seed."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
DATA = Path(os.environ.get("NOISEBOOK_DATA", ROOT.parent / "shared/data"))


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
    name = f"python {script.relative_to(ROOT)}" if script.is_relative_to(ROOT) else script.name
    arguments = [os.path.relpath(a, ROOT) if os.path.isabs(a) else a for a in sys.argv[1:]]
    return " ".join([name, *arguments])


def provenance(seed: int | None, device: str = "cpu") -> dict[str, Any]:
    """Device, versions, date, command line and seed of this run."""
    import numpy
    import torch

    import noisebook

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model()
    return {
        "device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "versions": {"noisebook": noisebook.__version__, "torch": torch.__version__, "numpy": numpy.__version__,
                     "python": platform.python_version()},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": command_line(), "seed": seed,
    }  # fmt: skip


def write(name: str, result: dict[str, Any], seed: int | None, device: str = "cpu") -> Path:
    """Writes bench/results/NAME.json with `result` and its provenance."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**provenance(seed, device), **result}, indent=1) + "\n")
    return path
