"""What every result file says of where it comes from: device, versions, date, command, seed."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]), "seed": seed,
    }  # fmt: skip


def write(name: str, result: dict[str, Any], seed: int | None, device: str = "cpu") -> Path:
    """Writes bench/results/NAME.json with `result` and its provenance."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**provenance(seed, device), **result}, indent=1) + "\n")
    return path
