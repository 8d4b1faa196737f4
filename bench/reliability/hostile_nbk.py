"""Hostile `.nbk` files: every field of the header and of the specification, with a right hash and a right checksum."""

import hashlib
import json
import struct
import zlib
from typing import Any

import numpy as np

from bench.reliability.hostile_kit import Case, Command, Place
from bench.reliability.hostile_values import Rng, mutated, some, string
from noisebook.errors import NoisebookError, SpecError
from noisebook.format.container import Container, packed_bits
from noisebook.format.crc import crc32c
from noisebook.images.files import spec_of, token_runs
from noisebook.rules import RULES
from noisebook.spec import presets
from noisebook.spec.curve import shipped_curves

MOST = 1 << 20  # bytes of a file: what the promise of `inspect` and `verify` is about
SIDES = (1, 2, 8, 16, 31, 32, 33, 64, 100, 256, 4096, 65535)
PARSE = (5.0, 300.0)  # seconds and MiB of `inspect` and `verify`
DECODE = (20.0, 1500.0)
BOUNDED = ["--max-pixels", "70000", "--max-network-calls", "12"]


def schedule(rng: Rng, rule: str) -> list[list[Any]]:
    """Falling levels, a few or very many."""
    steps = int(rng.choice([1, 2, 3, 8, 25, 300, 5000], p=[0.2, 0.25, 0.25, 0.15, 0.1, 0.03, 0.02]))
    levels = np.geomspace(float(rng.choice([3.0, 80.0, 1.0])), 0.05, steps + 1).tolist()
    budgets = {"bins": (1, 2, 16, 256, 1 << 16, 1 << 24), "poisson": (1, 5, 60, 3000, 1 << 20, 1 << 24)}
    most = budgets.get(rule, (1, 3, 20, 150, 4000, 1 << 22))
    budget = int(most[some(rng, 4, 4, 4, 2, 1, 1)])
    out = [[a, b * b / a, b, budget] for a, b in zip(levels, levels[1:], strict=False)]
    if rng.random() < 0.1:
        out[0][0] = None  # pure noise
        out[0][1] = 0.0
    return out


def specification(rng: Rng) -> dict[str, Any]:
    """A specification that the parser takes, with values up to its limits."""
    if rng.random() < 0.3:
        preset = list(presets.presets().values())[rng.integers(len(presets.presets()))]
        return json.loads(preset.spec.to_json())
    rule = list(RULES)[rng.integers(len(RULES))]
    law = "hadamard" if rule == "poisson" or rng.random() < 0.7 else "independent"
    bits = int(rng.choice([1, 2, 8, 16, 20, 25, 33], p=[0.05, 0.1, 0.3, 0.3, 0.1, 0.1, 0.05]))
    if rule == "poisson":
        bits = int(rng.choice([4, 5, 16, 17, 20, 25]))
    curve = list(shipped_curves().values())[rng.integers(len(shipped_curves()))]
    grid = (1, 1) if rule == "poisson" or rng.random() < 0.7 else (int(rng.integers(1, 257)), int(rng.integers(1, 257)))
    out: dict[str, Any] = {
        "noisebook_spec": 1,
        "backbone": curve.backbone,
        "fingerprint": curve.fingerprint,
        "schedule": schedule(rng, rule),
        "law": law,
        "vocabulary": 1 << bits,
        "seed": int(rng.integers(0, 1 << 62)),
        "start_bins": int(rng.choice([0, 0, 1, 16])),
        "start_vocabulary": 1 << int(rng.choice([1, 8, 16, 33])),
        "rows": grid[0],
        "columns": grid[1],
        "finish": "mean",
        "finish_levels": [],
        "scale_pixels": int(rng.choice([0, 0, 1, 1024, 393216, 1 << 32])),
        **({} if rule == "bins" else {"rule": rule}),  # as the canonical form leaves it out
    }
    if rule == "pursuit":
        out["coefficient_bits"] = int(rng.integers(2, 17))
    if rng.random() < 0.2:
        out["finish"] = str(rng.choice(["euler", "heun", "ab2"]))
        last = out["schedule"][-1][2]
        out["finish_levels"] = [*np.linspace(last, 0, int(rng.choice([2, 5, 2000])) + 1)[1:].tolist()]
    if rng.random() < 0.1:
        out["condition"], out["start_bins"] = [16, 256, 32], 0
    return out


def text_of(rng: Rng, spec: dict[str, Any]) -> bytes:
    """The specification as JSON: as noisebook writes it, or as only a stranger would."""
    if rng.random() < 0.95:
        return json.dumps(spec, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
    odd = [
        json.dumps(spec, indent=8).encode("utf-8", "surrogatepass"),
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" + b"1," * 500_000 + b"1]",
        b'{"noisebook_spec":' + b"9" * 100_000 + b"}",
        b"\xff\xfe" + json.dumps(spec).encode("utf-16-le", "surrogatepass"),
        b'"' + b"x" * 1_000_000 + b'"',
        b"",
        b"null",
        b"{" + b",".join(b'"k%d":0' % i for i in range(100_000)) + b"}",
    ]
    return odd[rng.integers(len(odd))]


def payload_of(rng: Rng, data: bytes, height: int, width: int) -> bytes:
    """The payload that the codec asks for where that is small enough, else another."""
    wanted = int(rng.choice([0, 1, 7, 100, 5000, MOST - 4096]))
    if rng.random() < 0.85:
        try:
            spec = spec_of(Container(hashlib.sha256(data).digest()[:8], height, width, b"", 0, data))
            runs = token_runs(spec, height, width) if spec else []
            if runs and max(run.subset for run in runs) < 5000:  # the exact size of a set of millions takes hours
                wanted = min(MOST - 8192, -(-packed_bits(runs) // 8))
            if spec and not spec.rule_type.fixed_length:
                wanted += int(rng.choice([0, 10, 1000, 100_000]))
        except (NoisebookError, OverflowError, MemoryError):
            pass
    return bytes(wanted) if rng.random() < 0.5 else rng.bytes(wanted)


def sealed(rng: Rng, height: int, width: int, payload: bytes, text: bytes, odd: bool) -> bytes:
    """The file. `odd`: a field of the header that the codec hash does not cover has another value."""
    packed = zlib.compress(text, 9)
    flags, preset, extra = 1, 0, b""
    if odd:
        flags, preset = int(rng.integers(4)), int(rng.integers(256))
        extra = struct.pack("<I", int(rng.integers(1 << 32)))
    name = hashlib.sha256(text).digest()[:8] if not odd or rng.random() < 0.7 else rng.bytes(8)
    out = struct.pack("<2sBB8sHH", b"\xb7N", 1 << 4 | flags, preset, name, height, width)
    if flags == 1:
        out += struct.pack("<I", len(packed)) + packed
    elif flags:
        out += extra
    out += payload
    return out + struct.pack("<I", crc32c(out))


def derived(rng: Rng, height: int, width: int) -> bytes:
    """A file whose specification follows from a shipped curve and two numbers."""
    from noisebook.spec.curve import spec_for

    curves = [c for c in shipped_curves().values() if c.number]
    curve = curves[rng.integers(len(curves))]
    steps, tokens = int(rng.choice([1, 2, 8, 25, 255])), int(rng.choice([2, 20, 500, 20_000, (1 << 24) - 1]))
    try:
        spec = spec_for(curve, curve.dims(height, width), tokens, steps)
        codec_hash, size = spec.hash, min(MOST, -(-packed_bits(token_runs(spec, height, width)) // 8))
    except SpecError:  # there is no such codec, and readers have to find that out
        codec_hash, size = rng.bytes(8), 100
    return Container(codec_hash, height, width, rng.bytes(size), curve.number, None, (steps, tokens)).to_bytes()


def passes(data: bytes) -> bool:
    try:
        container = Container.from_bytes(data)
        return spec_of(container) is not None
    except NoisebookError:
        return False


def make(place: Place, rng: Rng) -> Case:
    height, width = (int(SIDES[some(rng, *([3] * 9), 1, 1, 1)]) for _ in range(2))
    how = some(rng, 9, 1, 0.5)
    if how == 1:
        data = derived(rng, height, width)
    else:
        spec = mutated(specification(rng), rng, place.traps, some(rng, 12, 3, 1, 0.5))
        if rng.random() < 0.15 and isinstance(spec, dict):
            spec["backbone"] = string(rng, place.traps)
        text = text_of(rng, spec)
        data = sealed(rng, height, width, payload_of(rng, text, height, width), text, how == 2)
    path = place.inputs / "a.nbk"
    path.write_bytes(data)
    commands = [
        Command(["inspect", str(path), *(["--json"] if rng.random() < 0.3 else [])], *PARSE),
        Command(["verify", str(path), *(["--json"] if rng.random() < 0.3 else [])], *PARSE),
        Command(["decode", str(path), "-o", str(place.outputs / "d"), *BOUNDED], *DECODE),
    ]
    return Case(passes(data), commands, f"{height} x {width}, {len(data)} bytes")
