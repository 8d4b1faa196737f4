"""Actors of Ray killed while they make shards, and drivers; the real command each time, with a Ray of its own."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from faults_kit import LIMIT, Ground, digest, faults_of, remove

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
    """Kills one of the actors that live as soon as so many shards are done, for each number of `after`, or until nothing
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


def ray_kills(ground: Ground, shards: int, kills: int, drivers: int, seed: int) -> dict[str, Any]:
    """A data set of so many shards whose actors are killed `kills` times, one whose driver is killed and resumed `drivers`
    times; both compared with a run without Ray that nothing happened to."""
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
