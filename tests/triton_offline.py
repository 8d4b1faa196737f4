"""Compiles, without a GPU, every kernel that the wrappers launch, with the arguments they launch it with.

python triton_offline.py 90 prints one JSON list. The wrappers run on CPU tensors while launches are recorded instead of
made. Run by test_triton_compile.py in a process of its own, because the interpreter is chosen when a kernel is decorated.
"""

import collections
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import noisebook_kernels as kernels
from noisebook_kernels import hadamard, independent

assert isinstance(kernels.hadamard.search_kernel, JITFunction), "unset TRITON_INTERPRET"
os.environ["TRITON_INTERPRET"] = "1"  # after decoration: only so that the wrappers take CPU tensors
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64", torch.int8: "*i8"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
launches = {}


def record(kernel, *args, grid, warmup, **options):
    """The signature and specialisation that a launch would have: 1 is compiled in, multiples of 16 are known as such."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: options.pop(name) for name in kernel.arg_names if name in options}
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name, x = parameter.name, values[parameter.name]
        if parameter.is_constexpr or (type(x) is int and x == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", x
            continue
        signature[name] = POINTERS[x.dtype] if isinstance(x, torch.Tensor) else "fp32" if type(x) is float else "i32"
        aligned = x.data_ptr() % 16 == 0 if isinstance(x, torch.Tensor) else type(x) is int and x % 16 == 0
        if aligned and not parameter.do_not_specialize:
            hints[(place,)] = [["tt.divisibility", 16]]
    name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
    key = (name, str(signature), str(constants), str(hints), str(options))
    launches.setdefault(key, (kernel, signature, constants, hints, options))


def run_wrappers():
    """Small views, CIFAR and photos, latents in one search; one image and many; every rule; both ways to transform."""
    wanted = hadamard.matrix_units
    for way in (wanted, lambda device: False):
        hadamard.matrix_units = way
        for d, atoms, bases in [(3072, 4096, 256), (16384, 16384, 64)]:
            kernels.hadamard_select(torch.zeros(64, 1, d), 1, atoms, bases, 5, 7)
    hadamard.matrix_units = wanted
    for d, bins, atoms, bases, batch in [(48, 4, 16, 70, 33), (3072, 1, 4096, 256, 64), (2**21, 1024, 2048, 8, 1)]:
        residual = torch.zeros(batch, 1, d)
        for kind, shape in (("hadamard", (bins, atoms, bases)), ("independent", (bins, atoms))):
            if kind == "hadamard" or d <= 3072:
                getattr(kernels, f"{kind}_select")(residual, *shape, 5, 7)
            tokens = torch.zeros(batch, 1, bins, dtype=torch.int64)
            getattr(kernels, f"{kind}_noise")(tokens, d, *shape, 5, 7)
            getattr(kernels, f"{kind}_backtrace")(residual, residual, tokens, 0.5, 0.5, *shape, 5, 7)
    for d, bins, atoms, bases in [(1, 1, 1, 5), (5, 1, 1, 1), (2**14 + 1, 1, 1, 1)]:  # Triton compiles a 1 in
        residual, tokens = torch.zeros(1, 1, d), torch.zeros(1, 1, bins, dtype=torch.int64)
        for kind, shape in (("hadamard", (bins, atoms, bases)), ("independent", (bins, atoms))):
            getattr(kernels, f"{kind}_select")(residual, *shape, 1, 1, 1)
            getattr(kernels, f"{kind}_noise")(tokens, d, *shape, 1, 1, 1)
            getattr(kernels, f"{kind}_backtrace")(residual, residual, tokens, 0.5, 0.5, *shape, 1, 1, 1)
            getattr(kernels, f"{kind}_top")(residual, 1, *shape[1:], 1, 1, 1)
            bias, rest = torch.zeros(1, math.prod(shape[1:])), shape[1:] if kind == "hadamard" else ()
            getattr(kernels, f"{kind}_biased")(residual, bias, *rest, 1, 1, 1)
    for d, bins, atoms, bases in [(3072, 64, 64, 512), (6000, 64, 128, 256), (16384, 64, 256, 64)]:
        kernels.hadamard_select(torch.zeros(64, 1, d), bins, atoms, bases, 5, 7)
    kernels.hadamard_top(torch.zeros(8, 1, 3072), 300, 4096, 2, 5, 7)
    for d, atoms, bases in [(3072, 4096, 256), (48, 50, 70), (6000, 8192, 64)]:
        kernels.hadamard_top(torch.zeros(64, 1, d), 8, atoms, bases, 5, 7)
    for d, bins, atoms, bases, batch in [  # latents, CIFAR-10, a photograph, and small ones
        (16384, 64, 256, 128, 1),
        (16384, 64, 256, 128, 32),
        (65536, 256, 256, 128, 1),
        (3072, 64, 64, 512, 64),
        (196608, 1024, 256, 128, 1),
        (48, 2, 16, 9, 3),
        (2, 2, 1, 1, 1),
        (3, 4, 1, 1, 1),
    ]:
        tokens = torch.zeros(batch, 1, bins, dtype=torch.int64)
        kernels.hadamard_refined(torch.zeros(batch, 1, d), tokens, min(4, bins), bins, atoms, bases, 5, 7)
    tokens, state = torch.zeros(1, 1, 64, dtype=torch.int64), torch.zeros(1, 1, 16384)  # many tokens of latents
    for kind, shape in (("hadamard", (64, 256, 128)), ("independent", (64, 32768))):
        getattr(kernels, f"{kind}_noise")(tokens, 16384, *shape, 5, 7)
        getattr(kernels, f"{kind}_backtrace")(state, state, tokens, 0.5, 0.5, *shape, 5, 7)
    kernels.hadamard_biased(torch.zeros(8, 1, 3072), torch.zeros(1, 2**16), 4096, 16, 5, 7)
    kernels.independent_select(torch.zeros(1, 1, 16384), 1, 4096, 5, 7)
    for sizes in ((2**16, 2**16, 2**15), (16,)):
        kernels.arrival_bias(sizes, 5, 7, torch.device("cpu"))
    for dims, chunks in ((16384, 99), (3, 3)):
        kernels.chunk_places(dims, chunks, 5, 7, torch.device("cpu"))


def compiled(arch, kernel, signature, constants, hints, options):
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(binary.asm["cubin"])
        f.flush()
        command = [TOOLS / "cuobjdump", "-sass", "-res-usage", f.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", sass).groups())
    code = [(int(at, 16), op, rest) for at, op, rest in LINE.findall(sass)]
    ops = collections.Counter(op for _, op, _ in code)
    keep = ("LDL", "STL", "FFMA", "HFMA2", "HGMMA", "IGMMA", "HMMA", "IMMA", "MUFU")
    return {
        "registers": registers,
        "stack": stack,
        "shared": binary.metadata.shared,
        "instructions": ops.total(),
        "ops": {op: ops[op] for op in keep},
        "loops": loops(code),
    }


LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]+)([^;]*);")


def loops(code: list[tuple[int, str, str]]) -> list[dict[str, int]]:
    """Every backward branch: instructions between its target and itself, and how many of them are matrix products."""
    found = []
    for at, op, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if op == "BRA" else None
        if target and int(target[1], 16) < at:
            body = [o for a, o, _ in code if int(target[1], 16) <= a <= at]
            found.append({"instructions": len(body), "products": sum(o in ("HGMMA", "IGMMA", "HMMA", "IMMA") for o in body)})
    return found


def entry(arch, key):
    """The report on one of the launches."""
    _, _, constants, _, options = launches[key]
    shape = {k: v for k, v in constants.items() if k.isupper()} | options
    return {"kernel": key[0], "shape": shape, **compiled(arch, *launches[key])}


def report(arch, keys):
    """The reports on those launches, in order; compiled in a process for every core that this one may use."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("fork").Pool(cores) as pool:  # a launch cannot be sent, but is inherited
        return pool.starmap(entry, [(arch, key) for key in keys], chunksize=1)


if __name__ == "__main__":
    arch = int(sys.argv[1])
    independent.hopper = lambda device: arch == 90
    hadamard.matrix_units = lambda device: arch >= 90
    JITFunction.run = record
    run_wrappers()
    print(json.dumps(report(arch, list(launches))))
