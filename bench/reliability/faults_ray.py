"""Data sets made by actors of Ray that are killed, or that a picture kills, and drivers that are: parts of faults.py."""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.lib.images import smooth
from bench.lib.record import ROOT
from bench.reliability import faults_deadly
from bench.reliability.faults_kit import KNOBS, LIMIT, Ground, digest, faults_of, remove
from noisebook.datasets import ray as ray_engine
from noisebook.datasets.job import Job
from noisebook.datasets.run import run_job
from noisebook.images.io import png_bytes

OPTIONS = ("--engine", "ray", "--actors", "2", "--retries", "9")  # a shard may be hit by more than one of the kills


def events(output: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in the events of a data set."""
    path = output / "events-0.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def done(output: Path) -> int:
    """Shards that are committed."""
    return len(list((output / "ledger").glob("[0-9]*.json")))


def is_actor(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    return False


def kill_actors(output: Path, after: list[int], rng: random.Random, limit: float = LIMIT) -> list[int]:
    """Kills one of the actors that live as soon as that many shards are done, for each number of `after`, or until nothing
    has happened for `limit` seconds; their process ids."""
    killed: list[int] = []
    for count in after:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            alive = [e["process"] for e in events(output, "actor") if is_actor(e["process"])]
            if done(output) >= count and (alive := [pid for pid in alive if pid not in killed]):
                killed.append(rng.choice(alive))
                os.kill(killed[-1], signal.SIGKILL)
                break
            time.sleep(0.01)
    return killed


def make(
    ground: Ground,
    source: Path,
    output: Path,
    shard_size: int,
    retries: int | None,
    deadly: bool = False,
    wrong: str = "",
    actors: int = 2,
    during: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Tokenises `source` with actors of a Ray that runs, without `retries` in this process; the counts. `deadly`: a picture
    may kill the actor. `wrong`: what is wrong with the codec in an actor."""
    backbone, knobs, here, driver = ground.backbone, _recipe(), str(ROOT), os.getpid()

    def codec_for(_: Any, __: Any) -> Any:  # carried to the actors by value
        import sys

        import noisebook
        from noisebook.errors import BackboneError

        if wrong and os.getpid() != driver:
            raise BackboneError(wrong)
        if deadly and os.getpid() != driver:
            sys.path.insert(0, here)
            from bench.reliability import faults_deadly
            from noisebook.datasets import decoding

            decoding.decode = faults_deadly.decode
        return noisebook.load(backbone=backbone, dtype="float32", **knobs)

    def engine(tokenizer: Any, todo: list[int], progress: Any) -> None:
        during()
        assert retries is not None
        ray_engine.Crew(
            tokenizer, todo, progress, ray_engine.hiring(tokenizer, codec_for, {"num_cpus": 1}), actors, retries
        ).run()

    job = Job([str(source)], str(output), resume=True, shard_size=shard_size, batch_size=4, workers=0)
    return run_job(job, codec_for, lambda _: None, None if retries is None else engine)


def _recipe() -> dict[str, Any]:
    names = (word.removeprefix("--").replace("-", "_") for word in KNOBS[::2])
    return {k: int(v) for k, v in zip(names, KNOBS[1::2], strict=True) if k not in ("shard_size", "batch_size")}


def kills(ground: Ground, shards: int, count: int, seed: int) -> dict[str, Any]:
    """A data set of `shards` shards while `count` actors are killed, against an undisturbed one that no actor makes."""
    source, rng, killed = _pictures(ground, 2 * shards), random.Random(seed), []
    output, wanted_at = ground.output(), ground.output()
    make(ground, source, wanted_at, 2, retries=None)
    after = sorted(rng.sample(range(shards - 2), count))
    killer = threading.Thread(target=lambda: killed.extend(kill_actors(output, after, rng)), daemon=True)
    found = make(ground, source, output, 2, retries=count, during=killer.start)
    killer.join(LIMIT)
    out = {"shards": found["of_shards"], "kills": len(killed), "images": found["n_ok"], "faults": []}
    out["faults"] += faults_of(output, digest(wanted_at))
    if found["n_ok"] != 2 * shards or found["shards"] != shards:
        out["faults"].append(f"counts are {found}")
    if len(killed) != count:
        out["faults"].append(f"{len(killed)} kills of {count}")
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
    found = make(ground, source, output, 4, retries=0, deadly=True, actors=1)
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
        (source / f"{i:03d}.png").write_bytes(png_bytes(smooth(ground.rng)))
    return source


def commands(ground: Ground, shards: int, kills: int, drivers: int, seed: int) -> dict[str, Any]:
    """With the real command: a data set whose actors are killed `kills` times, one whose driver is killed and resumed
    `drivers` times; both compared with a run without Ray that nothing happened to."""
    rng, ground = random.Random(seed), Ground(ground.folder / "ray", ground.rng, 8 * shards)
    wanted = digest(whole := ground.whole())
    remove(whole)
    out: dict[str, Any] = {"shards": shards, "kills": 0, "actors": 0, "driver_kills": 0, "orphans": 0, "faults": []}
    output = ground.output()
    process = ground.command_line(output, *OPTIONS)
    out["kills"] = len(kill_actors(output, sorted(rng.sample(range(shards - 2), kills)), rng))
    _end(process, output, wanted, out)
    if out["kills"] < kills:
        out["faults"].append(f"{out['kills']} kills of {kills}: the run was over before")
    after = sorted(rng.sample(range(shards - 2), drivers))
    output = ground.output()
    for count in after:
        process = ground.command_line(output, *OPTIONS, "--resume")
        while done(output) < count + 1 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        out["driver_kills"] += 1
        _count_orphans(output, out)
    _end(ground.command_line(output, *OPTIONS, "--resume"), output, wanted, out)
    return out


def _end(process: subprocess.Popen, output: Path, wanted: str, out: dict[str, Any]) -> None:
    try:
        code = process.wait(3 * LIMIT)
        out["faults"] += [] if code == 3 else [f"exit code {code}"]
        out["faults"] += faults_of(output, wanted)
    except subprocess.TimeoutExpired:
        out["faults"].append("hang")
        process.kill()
    out["actors"] += len(events(output, "actor"))
    _count_orphans(output, out)
    remove(output)


def _count_orphans(output: Path, out: dict[str, Any], patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while (left := [e["process"] for e in events(output, "actor") if is_actor(e["process"])]) and time.monotonic() < end:
        time.sleep(0.1)
    out["orphans"] += len(left)
    out["faults"] += [f"{len(left)} actors are left"] if left else []


@contextlib.contextmanager
def ray_here(cpus: int = 2) -> Any:
    """A Ray of only this machine, as long as it lasts."""
    import ray

    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield ray
    finally:
        ray.shutdown()
