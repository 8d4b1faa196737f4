"""The memory that a piece of work takes at its peak, beside what was there before."""

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from noisebook.runtime.allocator import give_back

if TYPE_CHECKING:
    import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET = "5"  # of the highest resident size, see proc(5)


def peak_bytes(work: Callable[[], object], device: "torch.device") -> int | None:
    """Calls `work` and says how many bytes it took more at its peak: on CUDA of torch's allocator, on the CPU of the
    resident memory of this process, as Linux counts it. None where nobody counts it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    gc.collect()
    give_back()  # what was freed and kept would be taken again without being seen
    before = _resident("VmRSS") if device.type == "cpu" and _reset() else None
    work()
    highest = None if before is None else _resident("VmHWM")
    return None if before is None or highest is None else max(0, highest - before)


def _reset() -> bool:
    try:
        CLEAR.write_text(RESET)
    except OSError:  # another system, or not allowed
        return False
    return True


def _resident(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None
