"""Golden `.nbk` files, one for each variant of the format: python tools/golden_nbk.py --write

The files and tests/golden/nbk.json, what they must decode to, were written once. Files of users look like these: if
test_golden.py fails, it is the reader that is wrong. --write is for a new variant: it leaves alone what is there.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from noisebook import CodecSpec, Step
from noisebook.format.container import Container, pack
from noisebook.format.derived import Derived
from noisebook.format.runs import Run
from noisebook.images.files import contain
from noisebook.spec import curve as calibration
from noisebook.spec import presets

FOLDER = Path(__file__).resolve().parents[1] / "tests/golden"
EXPECTED = FOLDER / "nbk.json"
INF, HASH = float("inf"), "f" * 64
STEPS = (Step(2, 0.5, 1, 4), Step(1, 0.25, 0.5, 2))


def variants() -> dict[str, tuple[CodecSpec, tuple[int, int], Derived | None]]:
    """Name -> (specification, height and width, what it is derived from if it is of a shipped curve)."""
    curve = calibration.shipped_curves()["photo"]
    one, odd = {"backbone": "golden", "fingerprint": HASH}, (Step(2, 0.5, 1, 3), Step(1, 0.25, 0.5, 5))
    return {
        "preset": (presets.get("photo-v2").spec, (32, 48), None),
        "preset_photo_2": (presets.get("photo").spec, (32, 48), None),
        "preset_v1": (presets.get("photo-high-v1").spec, (40, 33), None),
        "derived": (calibration.spec_for(curve, curve.dims(64, 65), 20, 8), (64, 65), (8, 20)),
        "picture_levels": (calibration.spec_for(curve.scaled(4), curve.dims(33, 64), 24, 6), (33, 64), (6, 24, 4)),
        "start": (CodecSpec(**one, schedule=STEPS, start_budget=2, start_vocab_size=1024, rows=2, columns=3), (6, 7), None),
        "from_noise": (CodecSpec(**one, schedule=(Step(INF, 1, 2, 4), *STEPS), seed=2**64 - 1), (65535, 1), None),
        "not_a_power_of_two": (
            CodecSpec(**one, schedule=(Step(2, 0.5, 1, 64), Step(1, 0.25, 0.5, 1)), codebook="independent", vocab_size=1000),
            (5, 5),
            None,
        ),
        "largest_vocabulary": (CodecSpec(**one, schedule=STEPS, vocab_size=1 << 33), (8, 8), None),
        "scaled": (CodecSpec(**one, schedule=odd, scale_pixels=100), (24, 31), None),
        "finish": (CodecSpec(**one, schedule=STEPS, solver="heun", solver_levels=(0.25, 0)), (8, 8), None),
        "top": (CodecSpec(**one, schedule=odd, rule="top", vocab_size=512, rows=1, columns=2), (8, 9), None),
        "pursuit": (CodecSpec(**one, schedule=odd, rule="pursuit", coefficient_bits=3, vocab_size=256), (8, 9), None),
        "poisson": (
            CodecSpec(**one, schedule=(Step(2, 0.5, 1, 40), Step(1, 0.25, 0.5, 7)), rule="poisson", vocab_size=1 << 11),
            (9, 8),
            None,
        ),
        "condition": (CodecSpec(**one, schedule=STEPS, condition=(8, 64, 16)), (17, 20), None),
        "condition_only": (
            CodecSpec(**one, schedule=(), solver="ab2", solver_levels=(1, 0), condition=(16, 4, 16)),
            (40, 16),
            None,
        ),
    }


def drawn(runs: list[Run], rng: np.random.Generator) -> np.ndarray:
    """Random tokens, int64 [L], in these runs, the least and the largest of a vocabulary among them."""
    out = [np.empty(0, np.int64)]
    for run in runs:
        if run.subset:
            sets = [np.sort(rng.choice(run.vocab_size // 2, run.subset, False)) for _ in range(run.count // run.subset)]
            out += [2 * atoms + rng.integers(0, 2, run.subset) for atoms in sets]
        else:
            some = rng.integers(0, run.vocab_size, run.count)
            some[-1:], some[:1] = 0, run.vocab_size - 1
            out.append(some)
    return np.concatenate(out).astype(np.int64)


def made(spec: CodecSpec, size: tuple[int, int], derived: Derived | None, tokens: np.ndarray) -> Container:
    """The file of these tokens; its specification is embedded where it is neither a preset's nor derived."""
    return contain(spec, *size, pack(tokens, [run for _, run in spec.runs_for(*size)]), derived=derived)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files that are not there yet")
    if not parser.parse_args().write:
        sys.exit("give --write to write the golden files that are not there yet")
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for number, (name, (spec, size, derived)) in enumerate(variants().items()):
        path = FOLDER / f"{name}.nbk"
        if path.exists():
            continue
        tokens = drawn([run for _, run in spec.runs_for(*size)], np.random.default_rng(number))
        container = made(spec, size, derived, tokens)
        path.write_bytes(container.to_bytes())
        expected[name] = {
            "height": size[0],
            "width": size[1],
            "preset": container.preset,
            "hash": spec.hash.hex(),
            "derived": derived,
            "spec": None if container.spec_json is None else container.spec_json.decode(),
            "tokens": tokens.tolist(),
        }
    rows = [f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in expected.items()]
    EXPECTED.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
