"""What a child of fleet.py does: it makes a codec on its device, asks its parent for shards, and tells what it does."""

import os
import pickle
import platform
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from noisebook.datasets.memory import Share
from noisebook.datasets.ray import Given, Worker
from noisebook.datasets.shard import Tokenizer, of_the_device
from noisebook.datasets.worker import watch_parent
from noisebook.errors import NoisebookError, SpecError, first_line
from noisebook.runtime.limits import Limits


@dataclass(frozen=True)
class Orders:
    """What all children are given.

    recipe   pickled: unpickled here, so that what goes wrong is said in words
    share    of the memory of `limits`
    threads  of torch, as many as in the parent: on a CPU tokens may depend on it
    """

    recipe: bytes
    output: str
    given: Given
    limits: Limits
    share: Share
    threads: int


class Child(Worker):
    """A worker as Ray has them, which says at once what happens. Messages go by `link`: (loaded, where), (next,), which the
    parent answers with a shard or None, (event, its name, fields), (rests,), (log, a line), (raises, error) and (dies, why).
    The parent says `run` when there are shards."""

    place = "process"

    def __init__(self, orders: Orders, device: str, workers: int, link: Any):
        super().__init__(orders.output, self._codec, workers, orders.limits)
        self.orders, self.device, self.link = orders, device, link

    def run(self) -> None:
        """Until the parent ends it."""
        self.say("loaded", {**self.load(self.orders.given), "device": self.device})
        while self.link.recv() == "run":
            self.tokenizer.run(self._shards())
            self.say("rests")

    def say(self, kind: str, *what: Any) -> None:
        with self.lock:  # the codec and what writes shards are different threads
            self.link.send((kind, *what))

    def _codec(self, size: tuple[int, int] | None, network: Mapping[str, str]) -> Any:
        try:
            recipe = pickle.loads(self.orders.recipe)
        except Exception as error:
            raise SpecError(
                f"the function that makes the codec is not found in a process of its own ({first_line(error)}): define it "
                "at the top of a module, give a CodecRecipe, or name one device"
            ) from error
        return recipe.load(size, network, self.device)

    def _make(self, plan: Any, codec: Any, store: Any) -> Tokenizer:
        tokenizer = super()._make(plan, codec, store)
        tokenizer.share = self.orders.share
        return tokenizer

    def _shards(self) -> Iterator[int]:
        while True:
            self.say("next")
            shard = self.link.recv()
            if shard is None:
                return
            yield shard

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        self.say("event", event, {"time": round(time.time(), 3), **fields})


def work(orders: Orders, device: str, workers: int, link: Any) -> None:
    """The whole life of a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    watch_parent()
    torch.set_num_threads(orders.threads)
    child = Child(orders, device, workers, link)
    warnings.showwarning = lambda message, *_, **__: child.say("log", f"warning: {message}")
    try:
        child.run()
    except BaseException as error:
        if of_the_device(error):  # it may work on another one, and here in a new process
            child.say("dies", first_line(error))
            os._exit(1)
        child.say("raises", _portable(error))


def _portable(error: BaseException) -> BaseException:
    """The error as it can be pickled; with its traceback, where it is no refusal in words."""
    if not isinstance(error, NoisebookError):
        error.add_note(f"in the process {os.getpid()} on {platform.node()}:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # a type that takes other arguments than it keeps
        other = RuntimeError(f"{type(error).__name__}: {first_line(error)}")
        other.__notes__ = getattr(error, "__notes__", [])
        return other


__all__ = ["Child", "Orders", "work"]
