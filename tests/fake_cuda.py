"""CUDA graphs without CUDA: recordings of torch operations on the CPU, and a guard against what a recording cannot hold."""

import contextlib
import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from noisebook import codebook
from noisebook.codebook import refining
from noisebook.runtime.cuda_graphs import Graphs

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "lift_fresh")


def is_read(func) -> bool:
    """Whether an operation reads a value back to the host, or brings one from it."""
    return any(func._schema.name.removeprefix("aten::").lstrip("_").startswith(name.lstrip("_")) for name in READS)


class Recorder(TorchDispatchMode):
    """Runs and writes down every operation; refuses those that CUDA refuses while a stream is captured."""

    def __init__(self, steps: list):
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if is_read(func):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out


class FakeGraph:
    """Replays like a CUDA graph: the same operations on the same tensors, results in the same places."""

    def __init__(self):
        self.steps: list = []

    def fresh(self):
        """(operation, its arguments, the tensors it made that share no memory with an argument)."""
        for func, args, kwargs, out in self.steps:
            own = [r.alias_info is None for r in func._schema.returns]
            outs = out if isinstance(out, tuple) else (out,)
            mine = [o if new and isinstance(o, Tensor) else None for o, new in zip(outs, own, strict=False)]
            yield func, args, kwargs, mine

    def reset(self):
        self.steps.clear()

    @torch.no_grad()
    def replay(self):
        for func, _, _, outs in self.fresh():
            for out in outs:  # nothing of the recording's own values may be needed
                if out is not None and out.is_floating_point() and "_unsafe_view" not in str(func):
                    out.fill_(float("nan"))
        for func, args, kwargs, outs in self.fresh():
            new = func(*args, **kwargs)
            for out, value in zip(outs, new if isinstance(new, tuple) else (new,), strict=False):
                if out is not None:
                    out.copy_(value)


def install(monkeypatch) -> None:
    """Makes `Graphs` believe that CPU tensors can be captured."""

    @contextlib.contextmanager
    def graph(cuda_graph, pool, stream, capture_error_mode):
        assert pool is not None
        assert stream is not None
        assert capture_error_mode == "thread_local"
        with Recorder(cuda_graph.steps):
            yield

    stream = SimpleNamespace(wait_stream=lambda _: None, wait_event=lambda _: None)
    fakes = {
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "graph_pool_handle": object,
        "Stream": lambda: stream,
        "Event": lambda: SimpleNamespace(record=lambda _: None),
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Graphs, "takes", staticmethod(lambda tensors: True))


class OnDevice(TorchDispatchMode):
    """Fails on every operation that reads a value back, or that touches a tensor which is not on the `meta` device.

    A `meta` tensor has no values at all, so what needs one fails by itself."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, f"{func} touches a tensor on the host"
        assert not is_read(func), f"{func} reads a value back"
        return out


class NoHost(TorchFunctionMode):
    """Fails on the Python functions that carry values between host and device."""

    names = (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "tensor",
        "as_tensor",
        "from_numpy",
        "new_tensor",
        "__array__",
        "equal",
        "allclose",
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in self.names, f"{name} carries values between host and device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_host():
    with NoHost(), OnDevice():
        yield


class PlainBackend:
    """A codebook's back end in a few torch operations, for any device: codewords of its own, but tokens follow the residual
    and z the tokens."""

    @staticmethod
    def select(residual, kind, shape, step_index, seed):
        bins, atoms, bases = shape
        parts = residual[..., : residual.shape[-1] // bins * bins].unflatten(-1, (bins, -1))
        size, index = parts.abs().max(-1)
        return (2 * index + (size > 0.5).long() + step_index) % (2 * atoms * bases)

    @classmethod
    def refined(cls, residual, tokens, *where):
        return refining.refined(cls.select, cls.noise, residual, tokens, *where)

    @staticmethod
    def noise(tokens, d, kind, shape, step_index, seed):
        waves = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device) * (tokens + 1 + step_index % 101)
        return torch.sin(0.01 * waves.sum(-1, keepdim=True) * torch.arange(1, d + 1, device=tokens.device))

    @staticmethod
    def biased(residual, bias, kind, shape, step_index, seed):
        waves = torch.arange(1, bias.shape[-1] + 1, device=bias.device) * residual.sum(-1, keepdim=True)
        return 2 * (torch.sin(waves + step_index % 101) + bias).argmax(-1, keepdim=True)

    @staticmethod
    def arrival_bias(sizes, step_index, seed, device):
        k = torch.arange(sizes[0], device=device)
        shorter = torch.arange(len(sizes), device=device)[:, None] >= sizes.count(sizes[0])
        return (-0.01 * k).masked_fill(shorter & (k >= sizes[-1]), -math.inf)

    @staticmethod
    def chunk_places(dims, chunks, step_index, seed, device):
        """The dimensions from the last to the first."""
        width = -(-dims // chunks)
        full = dims - chunks * (width - 1)
        place = torch.arange(chunks * width, device=device)
        chunk = place // width
        padding = (chunk >= full) & (place % width == width - 1)
        places = (dims - 1 - place + (chunk - full).clamp(min=0)).masked_fill(padding, -1)
        position = dims - 1 - torch.arange(dims, device=device)
        lies = position + (position - full * width).clamp(min=0) // max(1, width - 1)  # a place of padding for each chunk
        return places.view(chunks, width), lies

    @classmethod
    def backtrace(cls, y, x0_hat, tokens, keep, sigma_up, *where):
        return x0_hat + keep * (y - x0_hat) + sigma_up * cls.noise(tokens, y.shape[-1], *where)


def plain_codebook(monkeypatch) -> None:
    """Codebooks that leave all work to `PlainBackend`."""
    monkeypatch.setattr(codebook, "backend", lambda device: PlainBackend)


def triton_without_launches(monkeypatch) -> list[str]:
    """Codebooks that go through the wrappers of the Triton kernels, on tensors of any device. No kernel is launched; the
    list that it returns gets the name of each that would be."""
    from triton.runtime.jit import KernelInterface

    from noisebook.codebook import triton

    launched: list[str] = []
    monkeypatch.setattr(codebook, "backend", lambda device: triton)
    monkeypatch.setattr(
        KernelInterface, "__getitem__", lambda kernel, grid: lambda *a, **o: launched.append(kernel.__name__)
    )
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read by the wrappers, which else take CUDA tensors only
    return launched
