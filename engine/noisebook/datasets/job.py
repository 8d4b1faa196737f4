"""What a run is to do, and which share of it a process does."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from noisebook.errors import SpecError


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

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("batch_size", 1), ("workers", 0), ("resize", 0)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} must be at least {least}, not {getattr(self, name)}")
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
        """As torchrun, `srun` or a Slurm array says, or both of Slurm; 0 of 1 where none does."""

        def number(name: str, default: int) -> int:
            return int(environment.get(name, default))

        if number("WORLD_SIZE", 1) > 1 and "RANK" in environment:
            return cls(number("RANK", 0), number("WORLD_SIZE", 1))
        tasks, elements = number("SLURM_NTASKS", 1), number("SLURM_ARRAY_TASK_COUNT", 1)
        task = number("SLURM_PROCID", 0) if tasks > 1 else 0
        element = number("SLURM_ARRAY_TASK_ID", 0) - number("SLURM_ARRAY_TASK_MIN", 0)
        element = element // number("SLURM_ARRAY_TASK_STEP", 1) if elements > 1 else 0
        return cls(element * tasks + task, tasks * elements)


def local_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """The device of this process: under torchrun, `cuda` is the GPU of its local rank."""
    return f"cuda:{environment['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in environment else device
