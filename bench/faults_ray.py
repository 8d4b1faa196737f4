"""A data set made by actors of Ray that are killed, or that a picture kills: a part of faults.py."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults_deadly
from faults_kit import KNOBS, Ground, digest, faults_of, png, remove, smooth

from noisebook.datasets import ledger, ray_engine, run
from noisebook.datasets.store import Store

BUSY = "ray::Worker.make"  # what Ray calls the process of an actor that makes a shard


def running_actors() -> list[int]:
    """Processes below this one, of actors that are making a shard."""
    parents, busy = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(BUSY.encode()):
                    busy.append(int(entry.name))
    return [pid for pid in busy if _below(pid, parents)]


def _below(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = parents.get(pid, 0)
    return False


class Killer(threading.Thread):
    """Kills an actor at work whenever so many more shards are done, until it has killed `kills`."""

    def __init__(self, output: Path, shards: int, kills: int):
        super().__init__(daemon=True)
        self.store, self.kills, self.killed, self.end = Store(output), kills, 0, False
        self.at = [shards * (k + 1) // (kills + 2) for k in range(kills)]

    def run(self) -> None:
        while not self.end and self.killed < self.kills:
            if len(self.store.names(ledger.LEDGER)) >= self.at[self.killed]:
                for pid in running_actors()[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.killed += 1
                        while Path(f"/proc/{pid}").exists() and not self.end:
                            time.sleep(0.01)
            time.sleep(0.01)


def make(
    ground: Ground, source: Path, output: Path, shard_size: int, retries: int | None, deadly: bool = False,
    wrong: str = "", actors: int = 2,
    during: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Tokenises `source` with actors of a Ray that runs, without `retries` in this process; the counts. `deadly`: a picture
    may kill the actor. `wrong`: what is wrong with the codec in an actor."""
    backbone, knobs, here, driver = ground.backbone, _recipe(), str(Path(__file__).parent), os.getpid()

    def codec_for(_: Any) -> Any:  # carried to the actors by value
        import sys

        import noisebook
        from noisebook.errors import BackboneError

        if wrong and os.getpid() != driver:
            raise BackboneError(wrong)
        if deadly and os.getpid() != driver:
            sys.path.insert(0, here)
            import faults_deadly

            from noisebook.datasets import decoding

            decoding.decode = faults_deadly.decode
        return noisebook.load(backbone=backbone, **knobs)

    def engine(tokenizer: Any, todo: list[int], progress: Any) -> None:
        during()
        assert retries is not None
        ray_engine.drive(tokenizer, todo, progress, codec_for, actors, {"num_cpus": 1}, retries)

    job = run.Job([str(source)], str(output), resume=True, shard_size=shard_size, batch_size=4, workers=0)
    return run.tokenize(job, codec_for, lambda _: None, None if retries is None else engine)


def _recipe() -> dict[str, Any]:
    names = (word.removeprefix("--").replace("-", "_") for word in KNOBS[::2])
    return {k: int(v) for k, v in zip(names, KNOBS[1::2], strict=True) if k not in ("shard_size", "batch_size")}


def kills(ground: Ground, shards: int, count: int) -> dict[str, Any]:
    """A data set of so many shards while so many actors are killed, against one that nothing disturbs and no actor makes."""
    source = _pictures(ground, 2 * shards)
    output, wanted_at = ground.output(), ground.output()
    make(ground, source, wanted_at, 2, retries=None)
    killer = Killer(output, shards, count)
    found = make(ground, source, output, 2, retries=count, during=killer.start)
    killer.end = True
    killer.join()
    out = {"shards": found["of_shards"], "kills": killer.killed, "images": found["n_ok"], "faults": []}
    out["faults"] += faults_of(output, digest(wanted_at))
    if found["n_ok"] != 2 * shards or found["shards"] != shards:
        out["faults"].append(f"counts are {found}")
    if killer.killed != count:
        out["faults"].append(f"{killer.killed} kills of {count}")
    for folder in (output, wanted_at):
        remove(folder)
    return out


def poison(ground: Ground) -> dict[str, Any]:
    """A picture that kills every actor: its shard ends in the ledger, the others are made, and --resume tries it again."""
    source = _pictures(ground, 12)
    bad = source / "005.png"
    good = bad.read_bytes()
    bad.write_bytes(faults_deadly.KILLS + good[len(faults_deadly.KILLS) :])
    whole = ground.output()
    output, out = ground.output(), {"faults": []}
    found = make(ground, source, output, 4, retries=1, deadly=True, actors=1)
    if (found["n_ok"], found["n_failed"], found["failed_by_code"]) != (8, 4, {"poisoned": 4}):
        out["faults"].append(f"counts are {found}")
    again = make(ground, source, output, 4, retries=0, actors=1)  # now it kills nobody: it is no picture, and that is all
    if (again["n_ok"], again["failed_by_code"]) != (11, {"not_an_image": 1}):
        out["faults"].append(f"after --resume counts are {again}")
    make(ground, source, whole, 4, retries=None)
    out["faults"] += faults_of(output, digest(whole))
    out["ledger"] = again["failed_by_code"]
    return out


def _pictures(ground: Ground, count: int) -> Path:
    source = ground.folder / f"pictures-{count}"
    source.mkdir()
    for i in range(count):
        (source / f"{i:03d}.png").write_bytes(png(smooth(ground.rng)))
    return source


@contextlib.contextmanager
def ray_here(cpus: int = 2) -> Any:
    """A Ray of this machine alone, as long as it lasts."""
    import ray

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield ray
    finally:
        ray.shutdown()
