"""What a run is to do, and which share of it a process does."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from noisebook.errors import SpecError, printable
from noisebook.runtime.limits import DEFAULT, Limits


@dataclass(frozen=True)
class Job:
    """What to tokenise, and how; the fields are the arguments of `tokenize`. `network` goes into the plan."""

    inputs: Sequence[str]
    output: str
    resume: bool = False
    input_format: str | None = None
    image_column: str | None = None
    shard_size: int = 1000
    batch_size: int = 32
    workers: int = 0
    resize: int = 0
    mixed_sizes: bool = False
    max_errors: int | None = None
    network: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = DEFAULT

    def __post_init__(self) -> None:
        if not self.inputs or not all(self.inputs) or not self.output:
            raise SpecError("an input or the output has an empty name, which would be the current folder: name it (.)")
        for name, least in (("shard_size", 1), ("batch_size", 1), ("workers", 0), ("resize", 0)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.resize > 1 << 16:
            raise SpecError(f"resize must be at most {1 << 16}, not {self.resize}")
        if self.max_errors is not None and self.max_errors < 0:
            raise SpecError(f"max_errors must be at least 0, not {self.max_errors}")
        if self.resize and self.mixed_sizes:
            raise SpecError("--resize makes all images one size: leave out --mixed-sizes")


@dataclass(frozen=True)
class Rank:
    """Which of several equal processes this one is; it makes the shards number, number + world, ..."""

    number: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.world:
            raise SpecError(f"a rank must be from 0 to {self.world - 1}, not {self.number}")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        """As torchrun, `srun` or a Slurm array says, or both of Slurm; 0 of 1 where none does. A variable that is empty
        counts as not set. Raises SpecError for one that is no number, and where the number of processes is there, but not
        which of them this is: to take a guess would make some shards twice and others never."""

        def number(name: str, default: int | None = None, because: str = "") -> int:
            value = _number(name, environment)
            if value is None and default is None:
                raise SpecError(f"{because}, but {name} is not set: which of the processes is this one?")
            return default or 0 if value is None else value

        world, tasks = number("WORLD_SIZE", 1), number("SLURM_NTASKS", 1)
        rank = environment.get("RANK", "").strip()
        if rank not in ("", "0") and _number("WORLD_SIZE", environment) is None and tasks < 2:
            raise SpecError(f"RANK is {printable(rank, 20)}, but WORLD_SIZE is not set: how many processes are there?")
        elements = number("SLURM_ARRAY_TASK_COUNT", 1)
        if world > 1 and (_number("RANK", environment) is not None or max(tasks, elements) < 2):
            return cls(number("RANK", None, f"WORLD_SIZE is {world}"), world)
        task = number("SLURM_PROCID", None, f"SLURM_NTASKS is {tasks}") if tasks > 1 else 0
        element = 0
        if elements > 1:
            because, step = f"SLURM_ARRAY_TASK_COUNT is {elements}", number("SLURM_ARRAY_TASK_STEP", 1)
            element = number("SLURM_ARRAY_TASK_ID", None, because) - number("SLURM_ARRAY_TASK_MIN", None, because)
            if step < 1:
                raise SpecError(f"SLURM_ARRAY_TASK_STEP is {step}: it must be at least 1")
            element //= step
        return cls(element * max(1, tasks) + task, max(1, tasks) * max(1, elements))


def local_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """The device of this process: under torchrun, `cuda` is the GPU of its local rank. Raises SpecError where LOCAL_RANK is
    no number."""
    local = _number("LOCAL_RANK", environment) if device == "cuda" else None
    return device if local is None else f"{device}:{local}"


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    """A variable of the environment; None where it is empty or not set."""
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10):
        raise SpecError(f"{name} must be a whole number, not {printable(repr(text), 40)}")
    return int(text)
