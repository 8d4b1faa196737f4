"""csrc/ in a program without Python: the known answers on this machine and, emulated, on aarch64.

Both programs are built without the kernels for x86, whose answers test_native.py compares with these, so that they differ
only in the processor. For aarch64 the test needs Debian's packages g++-aarch64-linux-gnu and qemu-user.
"""

import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from common import ROOT
from noisebook.codebook import reference

GOLDEN = ROOT / "tests/golden"
KNOWN = json.loads((GOLDEN / "codebook_known_answers.json").read_text())["cases"]
FLAGS = ["-std=c++17", "-O1", "-fno-math-errno", "-ffp-contract=off", "-pthread"]
TARGETS = {
    "native": ([os.environ.get("CXX", "g++"), "-DNOISEBOOK_PORTABLE"], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
}
HEADER = 16  # bytes, docs/format.md


@pytest.fixture(scope="module", params=TARGETS)
def answers(request, tmp_path_factory):
    """answers(records): runs the program on them, and returns the finished process."""
    compiler, emulator = TARGETS[request.param]
    for tool in (compiler[0], *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    sources = [str(p) for p in sorted((ROOT / "csrc").glob("*.cpp")) if p.name != "module.cpp"]
    sources.append(str(ROOT / "tests/csrc/known_answers.cpp"))
    command = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", str(folder / "known_answers")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    def run(records: list[str]) -> subprocess.CompletedProcess[str]:
        (folder / "records").write_text("\n".join(records))
        command = [*emulator, str(folder / "known_answers"), str(folder / "records")]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run


def check(answers, records: list[str]) -> None:
    found = answers(records)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"{len(records)} right by portable\n"


# ---- records ------------------------------------------------------------------------------------------------------------
def numbers(values: Iterable[int]) -> str:
    values = list(values)
    return " ".join(map(str, [len(values), *values]))


def floats(values: np.ndarray | None) -> str:
    return numbers([] if values is None else np.ascontiguousarray(values, np.float32).ravel().view(np.uint32).tolist())


def rule_record(rule, kind, shape, stream, tokens, residual=None, bias=None, noise=None, d=0) -> str:
    """shape: bins, atoms, bases; stream: step index, seed, first block; tokens int64 [B, U, count]; residual [B, U, D]."""
    step_index, seed, block = stream
    batch, blocks, count = tokens.shape
    head = [kind, rule, batch, blocks, d or residual.shape[-1], count, *shape, seed, step_index, block]
    return " ".join([*map(str, head), floats(residual), floats(bias), numbers(tokens.ravel().tolist()), floats(noise)])


def pack_record(runs, tokens, payload: bytes) -> str:
    return f"pack {numbers(x for run in runs for x in run)} {numbers(map(int, tokens))} {numbers(payload)}"


def parse_record(data: bytes, refusal: str | None = None, fields: Iterable[int] = ()) -> str:
    """fields: flags, preset, height, width, place and size of the specification, steps, tokens, place of the payload."""
    fields = [*fields]
    size = [len(data) - 4 - fields[-1]] if fields else []
    return f"parse {numbers(data)} {refusal or 'none'} {numbers([*fields, *size])}"


def golden_rules() -> list[str]:
    """`select` and `noise` of the golden answers, and what follows from them for `top`."""
    out = []
    for case in KNOWN:
        kind, shape = case["law"], (case["bins"], case["atoms"], case["bases"])
        stream, tokens = (case["step"], int(case["seed"]), case["unit"]), np.array(case["tokens"])[None, None]
        head = np.array([float.fromhex(x) for x in case["z_float32_head_hex"]])
        out.append(rule_record("noise", kind, shape, stream, tokens, noise=head, d=case["d"]))
        if case["residual"] is not None:
            residual = np.array(case["residual"])[None, None]
            out.append(rule_record("select", kind, shape, stream, tokens, residual))
            if case["bins"] == 1:
                out.append(rule_record("top", kind, shape, stream, tokens, residual))
    return out


def defined_rules() -> list[str]:
    """`top` and `biased` by the definition, where all scores are exact in float32 and int8: P is a power of 4, and the
    residual whole numbers, or for `independent` one entry, which the rotation spreads evenly over all."""
    out, rng, stream = [], np.random.default_rng(7), (5, 2**63 + 9, 11)
    for d, atoms, bases, count in ((13, 16, 40, 100), (200, 256, 3, 768), (3072, 4096, 2, 50)):
        residual = rng.integers(-20, 21, (1, d)).astype(np.float32)
        spike = np.zeros((1, d), np.float32)
        spike[0, rng.integers(d)] = -3
        bias = rng.integers(-50, 51, atoms * bases).astype(np.float32)
        r, s, b = map(torch.from_numpy, (residual, spike, bias))
        shape, words = (1, atoms, bases), min(atoms * bases, 300)
        tokens = reference.hadamard_top(r, count, atoms, bases, *stream)
        out.append(rule_record("top", "hadamard", shape, stream, tokens[None], residual[None]))
        tokens = reference.hadamard_biased(r, b, atoms, bases, *stream)
        out.append(rule_record("biased", "hadamard", shape, stream, tokens[None], residual[None], bias))
        tokens = reference.independent_top(s, min(count, words), words, *stream)
        out.append(rule_record("top", "independent", (1, words, 1), stream, tokens[None], spike[None]))
        tokens = reference.independent_biased(s, b[:words], *stream)
        out.append(rule_record("biased", "independent", (1, words, 1), stream, tokens[None], spike[None], bias[:words]))
    return out


def golden_files() -> list[str]:
    """The frame of every golden file, written and damaged; its bytes are also a payload of one run."""
    out = []
    for name, expected in json.loads((GOLDEN / "nbk.json").read_text()).items():
        if len(expected["derived"] or ()) > 2:  # of a scaled curve: the extension refuses these, and Python reads them
            continue
        data = (GOLDEN / f"{name}.nbk").read_bytes()
        at, spec, derived = HEADER, 0, [0, 0]
        if expected["spec"]:
            at += 4
            stream = zlib.decompressobj()
            assert stream.decompress(data[at:-4]).decode() == expected["spec"]
            spec = len(data) - 4 - at - len(stream.unused_data)
        flags, payload = (1 if spec else 2 if expected["derived"] else 0), at + spec
        if expected["derived"]:
            derived, payload = expected["derived"], at + 4
        fields = [flags, expected["preset"], expected["height"], expected["width"], at, spec, *derived, payload]
        out.append(parse_record(data, fields=fields))
        out.append(parse_record(data[:19], "few"))
        for byte in range(len(data)):
            damaged = bytearray(data)
            damaged[byte] ^= 1 << byte % 8
            out.append(parse_record(damaged, "magic" if byte < 2 else "checksum"))
        out.append(pack_record([(len(data), 256)], data, data))
    return out


def small_answers() -> list[str]:
    """Check values of RFC 3720, and payloads that are written out by hand."""
    crc = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43}
    return [
        *(f"crc {numbers(data)} {value}" for data, value in crc.items()),
        pack_record([(3, 4), (1, 2)], [3, 0, 2, 1], bytes([0b1100101_0])),
        pack_record([(2, 10)], [9, 9], bytes([99 << 1])),  # one number below 100, in 7 bits
        pack_record([(1, 1 << 62)], [(1 << 62) - 1], b"\xff" * 7 + b"\xfc"),
        f"unpack {numbers([2, 10])} {numbers([100 << 1])} vocabulary",
        f"unpack {numbers([2, 10])} {numbers([99 << 1 | 1])} padding",
        f"unpack {numbers([2, 10])} {numbers([99 << 1, 0])} payload",
    ]


# ---- tests --------------------------------------------------------------------------------------------------------------
def test_golden_and_defined_answers(answers):
    check(answers, [*golden_rules(), *defined_rules(), *golden_files(), *small_answers()])


# kind, batch, blocks, d, bins, atoms, bases
SHAPES = [
    ("hadamard", 3, 2, 100, 8, 11, 3),
    ("hadamard", 2, 1, 1, 1, 1, 9),
    ("hadamard", 2, 1, 3072, 1, 4096, 4),
    ("hadamard", 1, 1, 2**18, 256, 1024, 1),  # threads share one transform
    ("independent", 5, 2, 100, 4, 10, 1),
    ("independent", 9, 1, 777, 1, 65, 1),
    ("independent", 2, 1, 3072, 1, 130, 1),
]


def test_fresh_inputs_give_the_bits_of_the_extension(answers, fresh):
    native = pytest.importorskip("noisebook._C", reason="the C++ extension was not built")
    records = []
    for kind, batch, blocks, d, bins, atoms, bases in SHAPES:
        stream = int(fresh.integers(2**32)), int(fresh.integers(2**64, dtype=np.uint64)), int(fresh.integers(2**20))
        residual = fresh.standard_normal((batch, blocks, d), np.float32)
        of = {rule: getattr(native, f"{kind}_{rule}") for rule in ("select", "top", "biased", "noise")}
        shape, last = (bins, atoms, bases), [bases] if kind == "hadamard" else []
        tokens = of["select"](residual, bins, atoms, *last, *stream)
        records.append(rule_record("select", kind, shape, stream, tokens, residual))
        noise = of["noise"](tokens, d, bins, atoms, *last, *stream)
        records.append(rule_record("noise", kind, shape, stream, tokens, noise=noise, d=d))
        shape, count = (1, atoms, bases), int(fresh.integers(1, atoms * bases + 1))
        tokens = of["top"](residual, count, atoms, *last, *stream)
        records.append(rule_record("top", kind, shape, stream, tokens, residual))
        bias = (fresh.standard_normal((blocks, atoms * bases)) * np.sqrt(d)).astype(np.float32)
        tokens = of["biased"](residual, bias, *([atoms, *last] if last else []), *stream)
        records.append(rule_record("biased", kind, shape, stream, tokens, residual, bias))
    for _ in range(200):
        runs = [(int(fresh.integers(0, 70)), int(fresh.integers(2, 1 << int(fresh.integers(2, 62))))) for _ in range(3)]
        tokens = np.concatenate([fresh.integers(0, v, n) for n, v in runs])
        records.append(pack_record(runs, tokens, native.nbk_pack(tokens, np.array(runs))))
    data = fresh.bytes(1001)
    records.append(f"crc {numbers(data)} {native.nbk_crc32c(data)}")
    for name in ("start", "derived", "preset"):
        for byte in range(HEADER + 4):  # damaged, but with a checksum that is right
            damaged = bytearray((GOLDEN / f"{name}.nbk").read_bytes())
            damaged[byte] ^= int(fresh.integers(1, 256))
            damaged[-4:] = struct.pack("<I", native.nbk_crc32c(damaged[:-4]))
            found = native.nbk_parse(damaged)
            refused = isinstance(found, str)
            records.append(parse_record(damaged, found if refused else None, () if refused else (*found[:2], *found[3:])))
    check(answers, records)


def spoiled(record: str) -> str:
    """The same record with its last answer changed: a token, an entry of noise, a byte, a field, a checksum, a name."""
    words = record.split()
    at = -2 if words[1] in ("select", "top", "biased") else -1  # those end with an empty list of noise
    words[at] = str(int(words[at]) ^ 1) if words[at].isdigit() else "few"
    return " ".join(words)


@pytest.mark.parametrize("answers", ["native"], indirect=True)
def test_a_wrong_answer_is_found(answers):
    good = [*golden_rules()[:3], *defined_rules()[:4], *small_answers(), golden_files()[0]]
    assert {record.split()[0] for record in good} == {"hadamard", "independent", "crc", "parse", "pack", "unpack"}
    check(answers, good)
    for i, record in enumerate(good):
        found = answers([*good[:i], spoiled(record), *good[i + 1 :]])
        assert found.returncode == 1, record[:60]
        assert f"record {i}: " in found.stderr
