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
    image_suffix: str = ""
    drop_columns: Sequence[str] = ()
    shard_size: int = 1000
    batch_size: int | None = None
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
            if (value := getattr(self, name)) is not None and value < least:
                raise SpecError(f"{name} must be at least {least}, not {value}")
        if self.image_suffix.startswith(".") or self.image_suffix != self.image_suffix.lower() or "/" in self.image_suffix:
            raise SpecError("image_suffix must be an ending in lower case, without a dot or slash: depth.png")
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
        """As torchrun, `mpirun`, `srun` or a Slurm array says, or both of Slurm; 0 of 1 where none does. A variable that is
        empty counts as not set. Raises SpecError for one that is no number, where torchrun and `mpirun` contradict each
        other, and where the number of processes is there, but not which of them this is: to take a guess would make some
        shards twice and others never."""
        said = [_said(environment, rank, size) for rank, size in LAUNCHERS]
        tasks = _count("SLURM_NTASKS", environment)
        elements = _count("SLURM_ARRAY_TASK_COUNT", environment)
        alone = tasks < 2 and not any(size and size > 1 for _, size in said)
        for (rank, size), (rank_name, size_name) in zip(said, LAUNCHERS, strict=True):
            if rank and size is None and alone:
                raise SpecError(f"{rank_name} is {rank}, but {size_name} is not set: how many processes are there?")
        if said[0][0] is None and max(tasks, elements) > 1:
            said[0] = None, None  # WORLD_SIZE by itself may be set for what the job starts
        sized = [(rank, size, names) for (rank, size), names in zip(said, LAUNCHERS, strict=True) if size]
        for rank, size, (rank_name, size_name) in sized:
            if rank is None and size > 1:
                raise SpecError(f"{size_name} is {size}, but {rank_name} is not set: which of the processes is this one?")
            if rank is not None and not 0 <= rank < size:
                raise SpecError(f"{rank_name} is {rank}, but {size_name} is {size}: a rank is from 0 to {size - 1}")
        many = [entry for entry in sized if entry[1] > 1]
        if len({(rank, size) for rank, size, _ in many}) > 1:
            words = " and ".join(f"{names[0]} of {names[1]} is {rank} of {size}" for rank, size, names in many)
            raise SpecError(f"{words}: which of the processes is this one? Unset the variables that are not of this run")
        if many and many[0][2] == LAUNCHERS[0]:
            return cls(many[0][0] or 0, many[0][1] or 1)
        if many:  # `mpirun` in a job of Slurm: what Slurm says is of the job, or of the processes that start these
            task, tasks = many[0][0] or 0, many[0][1] or 1
        else:
            task = _required("SLURM_PROCID", f"SLURM_NTASKS is {tasks}", environment) if tasks > 1 else 0
        element = _element(elements, environment) if elements > 1 else 0
        return cls(element * tasks + task, tasks * elements)


#: variables for the rank and the number of processes: of torchrun, Open MPI, and MPICH and its kin
LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")  # of these, in the order in which they are asked


def _said(environment: Mapping[str, str], rank: str, size: str) -> tuple[int | None, int | None]:
    """(rank, number of processes) as two variables say."""
    count = _number(size, environment)
    if count is not None and count < 1:
        raise SpecError(f"{size} is {count}: there is at least one process")
    return _number(rank, environment), count


def _count(name: str, environment: Mapping[str, str]) -> int:
    count = _number(name, environment)
    if count is not None and count < 1:
        raise SpecError(f"{name} is {count}: it must be at least 1")
    return 1 if count is None else count


def _required(name: str, because: str, environment: Mapping[str, str]) -> int:
    value = _number(name, environment)
    if value is None:
        raise SpecError(f"{because}, but {name} is not set: which of the processes is this one?")
    return value


def _element(elements: int, environment: Mapping[str, str]) -> int:
    """The number of this element in a Slurm array."""
    because = f"SLURM_ARRAY_TASK_COUNT is {elements}"
    step = _number("SLURM_ARRAY_TASK_STEP", environment)
    number = _required("SLURM_ARRAY_TASK_ID", because, environment)
    first = _required("SLURM_ARRAY_TASK_MIN", because, environment)
    if step is not None and step < 1:
        raise SpecError(f"SLURM_ARRAY_TASK_STEP is {step}: it must be at least 1")
    return (number - first) // (step or 1)


def ends_together(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether what started this process ends all ranks when one of them exits with another code than 0: torchrun and
    `mpirun` do, `srun` does not unless it is told to."""

    def of(name: str) -> str:
        return environment.get(name, "").strip()

    by_srun = (of("PMI_RANK"), of("PMI_SIZE")) == (of("SLURM_PROCID"), of("SLURM_NTASKS"))
    sizes = [of("OMPI_COMM_WORLD_SIZE"), "" if by_srun else of("PMI_SIZE")]
    return "TORCHELASTIC_RUN_ID" in environment or any(size not in ("", "1") for size in sizes)


def local_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """The device of this process: under torchrun and `mpirun`, `cuda` is the GPU of its local rank, unless it sees one only.
    Raises SpecError where the local rank is no number."""
    if device != "cuda":
        return device
    local = _number("LOCAL_RANK", environment)
    if local is None and "," in environment.get("CUDA_VISIBLE_DEVICES", ","):  # else each process was given its own
        local = next((n for name in LOCAL_RANKS if (n := _number(name, environment)) is not None), None)
    return device if local is None else f"{device}:{local}"


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    """A variable of the environment; None where it is empty or not set."""
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10):
        raise SpecError(f"{name} must be a whole number, not {printable(repr(text), 40)}")
    return int(text)
