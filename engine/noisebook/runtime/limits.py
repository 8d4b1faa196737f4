"""How much a file may cost its reader. A file that asks for more is refused before the cost is spent (docs/security.md)."""

import contextlib
import os
from dataclasses import dataclass, fields

from noisebook.errors import SpecError


@dataclass(frozen=True)
class Limits:
    """What a file may ask for; one more is refused with an error that names the limit and its option.

    pixels         of a picture that is read, and of a decode: height x width
    network_calls  of a decode, those of the solver included
    work           of parsing the tokens of a file, in microseconds of one slow core: about what entropy codes cost
    rows           of a Parquet file, and images of a plan
    memory         bytes that `tokenize` may take; 0: half of the machine's

    Raises SpecError for a limit below 0, or below 1 where 0 means nothing.
    """

    pixels: int = 1 << 28
    network_calls: int = 4096
    work: int = 2_000_000
    rows: int = 1 << 27
    memory: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "memory" else 1
            if value < least:
                raise SpecError(f"the limit {field.name} must be at least {least}, not {value}")

    @property
    def memory_bytes(self) -> int:
        """`memory`, or half of the machine's (4 GiB where the system does not say)."""
        return self.memory or machine_memory() // 2


DEFAULT = Limits()
OPTIONS = {  # limit -> the option that raises it, for messages
    "pixels": "--max-pixels",
    "network_calls": "--max-network-calls",
    "work": "--max-work",
    "rows": "--max-rows",
    "memory": "--memory",
}


def too_much(what: str, value: int, limits: Limits, name: str) -> str | None:
    """The words of a refusal, "WHAT VALUE, more than the limit of N: OPTION raises it"; None where the limit holds."""
    limit = getattr(limits, name)
    return None if value <= limit else f"{what} {value:,}, more than the limit of {limit:,}: {OPTIONS[name]} raises it"


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the control group that holds this process, whichever is less; 8 GiB where the
    system does not say."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not POSIX
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as f:
                found.append(int(f.read()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min([n for n in found if n > 0], default=8 << 30)
