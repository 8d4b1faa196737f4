"""Timing one call on a GPU: medians with quartiles, inputs in turns, caches flushed and memory poisoned before each run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLUSH_BYTES = 128 << 20  # more than any L2 cache we know; an H200 has 50 MB
ROTATION_BYTES = 2 * (50 << 20)  # the copies of one input exceed the cache together
GRAPHS = 4  # copies that get a graph of their own
ROUNDS = (7, 200)

Call = Callable[[int], Tensor]  # number of the input copy -> what the call returns


class Clock:
    """Times calls on `device`: with CUDA events, or by the processor's clock where there is no GPU."""

    def __init__(self, device: torch.device, rounds: tuple[int, int] = ROUNDS):
        self.device, self.rounds = device, rounds
        self.cuda = device.type == "cuda"
        self.flush = torch.zeros(FLUSH_BYTES if self.cuda else 1, dtype=torch.uint8, device=device)
        self.count = 0

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, run: Callable[[], Any]) -> float:
        """Seconds of one run. Before it the cache is filled with other data; on the GPU that work also hides what the
        host needs to hand over the launches, as far as it lasts (some 40 us)."""
        self.count += 1
        if not self.cuda:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.fill_(self.count % 255)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def time(self, run: Call, copies: int, poison: Call | None = None, seconds: float = 0.2) -> dict[str, Any]:
        """Median and quartiles in ms of `run(i)` for i = 0, 1, ... modulo `copies`, each after `poison(i)`.

        As many rounds as `seconds` hold, within the limits of this clock; up to three warm-up rounds before."""
        for i in range(min(3, self.rounds[0] - 1)):
            if poison:
                poison(i % copies)
            estimate = self.once(lambda i=i: run(i % copies))
        rounds = max(self.rounds[0], min(self.rounds[1], int(seconds / max(estimate, 1e-6))))
        times = []
        for i in range(rounds):
            if poison:
                poison(i % copies)
            times.append(self.once(lambda i=i: run(i % copies)))
        return quartiles(times)


def quartiles(seconds: list[float]) -> dict[str, Any]:
    """{median_ms, q1_ms, q3_ms, rounds} of at least two times in seconds."""
    q1, median, q3 = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "q1_ms": q1, "q3_ms": q3, "rounds": len(seconds)}


def copies_of(shape: tuple[int, ...], device: torch.device, generator: torch.Generator, least: int = 2) -> Tensor:
    """Fresh Gaussian inputs [copies, *shape] float32, together larger than the cache on a GPU."""
    one = 4 * torch.Size(shape).numel()
    count = max(least, -(-ROTATION_BYTES // one)) if device.type == "cuda" else least
    return torch.randn((count, *shape), device=device, generator=generator)


def poison(x: Tensor) -> Tensor:
    """Fills x with what no result may hold: NaN, or the least integer."""
    return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min)


class Eager:
    """The plain call. Each output is poisoned and freed before the next call, which the allocator gives the same memory;
    so is a block as large as the workspace, of which the call's temporary tensors are cut."""

    def __init__(self, call: Call, workspace: int, device: torch.device):
        self.call, self.workspace, self.device = call, workspace, device
        self.out: Tensor | None = None

    def run(self, i: int) -> Tensor:
        self.out = self.call(i)
        return self.out

    def poison(self, i: int) -> Tensor:
        if self.out is not None:
            poison(self.out)
            self.out = None
        return poison(torch.empty(max(1, self.workspace // 4), device=self.device))


class Graphed:
    """The call captured once for each of some input copies; outputs are poisoned before each replay."""

    def __init__(self, call: Call, copies: int):
        self.outs, self.graphs = [], []
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call(0)
        torch.cuda.current_stream().wait_stream(side)
        for i in range(min(copies, GRAPHS)):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.outs.append(call(i))
            self.graphs.append(graph)

    def run(self, i: int) -> Tensor:
        self.graphs[i].replay()
        return self.outs[i]

    def poison(self, i: int) -> Tensor:
        return poison(self.outs[i])


def measure(clock: Clock, call: Call, copies: int, seconds: float = 0.2) -> dict[str, Any]:
    """{"times": {"plain": ..., "graph": ...}, "peak_mib": what a call needs beside its inputs and outputs}.

    Raises AssertionError if a call on poisoned memory, or a replay, gives another output than the first call did."""
    few = min(copies, GRAPHS)
    want = [call(i).clone() for i in range(few)]
    result: dict[str, Any] = {"peak_mib": None}
    workspace = 0
    if clock.cuda:
        clock.sync()
        torch.cuda.reset_peak_memory_stats(clock.device)
        before = torch.cuda.memory_allocated(clock.device)
        out = call(0)
        clock.sync()
        workspace = torch.cuda.max_memory_allocated(clock.device) - before - out.numel() * out.element_size()
        result["peak_mib"] = workspace / 2**20
        del out
    eager = Eager(call, workspace, clock.device)
    times = {"plain": clock.time(eager.run, copies, eager.poison, seconds)}
    same(eager, want)
    if clock.cuda:
        graphed = Graphed(call, copies)
        times["graph"] = clock.time(graphed.run, few, graphed.poison, seconds)
        same(graphed, want)
    return {"times": times, **result}


def same(way: Eager | Graphed, want: list[Tensor]) -> None:
    for i, expected in enumerate(want):
        way.poison(i)
        if not torch.equal(way.run(i), expected):
            raise AssertionError(f"{type(way).__name__.lower()} call on poisoned memory gives another output")
