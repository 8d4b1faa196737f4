"""The codecs of the comparison as specifications of one engine: a number of bits and of network calls, one backbone.

`turbo_on_ours` has our levels, start and bits of each step: only the rule differs, and only this comparison is like with
like. `ddcm` and `turbo` have the published grids on Stable Diffusion's noise, made for its latents; that of `turbo` is the
grid of its repository at commit 77353e4 (April 2026), and the paper's tables are of an older one. Turbo-DDCM's K grows with
the picture, as its authors advise (`atoms_of`). `diffc` follows the calibrated curve (a divergence-matched schedule is
DiffC's own idea): its budgets were measured on other pictures, where DiffC as published takes each picture's own
(bench/quality/diffc.py). All have the codebook `hadamard`, which matches independent codewords and takes no hours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from noisebook.backbones import Backbone
from noisebook.errors import SpecError
from noisebook.format.sets import subset_bits
from noisebook.spec import curve as calibration
from noisebook.spec import schedule
from noisebook.spec.curve import Curve
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step

ATOMS = 16384  # K of DDCM, and of Turbo-DDCM for 16,384 dimensions or fewer
CHUNK = 16  # index bits of DiffC's chunks
COEFFICIENT = 3  # C of DDCM: 7 coefficients
HIGHEST = 64.0  # where DiffC's schedule begins: a fixed draw, of which the network learns next to nothing


@dataclass(frozen=True)
class Place:
    """What all codecs of a comparison have in common."""

    backbone: Backbone
    curve: Curve
    height: int
    width: int

    @property
    def dims(self) -> int:
        return math.prod(self.backbone.state_shape(*self.backbone.padded(self.height, self.width)))

    def spec(self, steps: tuple[Step, ...], **more) -> CodecSpec:
        spec = CodecSpec(self.backbone.name, self.backbone.fingerprint, steps, condition=self.curve.condition, **more)
        return calibration.with_known_levels(spec, self.backbone)


def atoms_of(dims: int) -> int:
    """Turbo-DDCM's K for a picture of that many dimensions: its authors use 2^14 for 2^14, and more for larger pictures."""
    return max(ATOMS, 1 << (dims.bit_length() - 1))


def most_atoms(codebook: int, bits: float) -> int:
    """The largest M whose sets of M signed atoms out of `codebook` take at most `bits` bits; 1 where none does. Raises
    SpecError where there are more bits than any set takes."""
    most = 2 * codebook // 3  # the sets of which there are most
    if bits >= 1.5 * codebook and bits > subset_bits(codebook, most):
        raise SpecError(f"a step of {bits:.0f} bits is more than any set of {codebook} atoms takes: K is too small")
    high = 1
    while high < most and subset_bits(codebook, high) <= bits:
        high = min(2 * high, most)
    low = max(1, high // 2)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if subset_bits(codebook, middle) <= bits else (low, middle - 1)
    return low


Maker = Callable[[Place, float, int], CodecSpec]  # (place, bits of the payload, network calls of a decode)


def ours(place: Place, bits: float, calls: int, vocab_size: int = 65536) -> CodecSpec:
    """The default: at most `bits`. Under a condition its first tokens take a call of their own."""
    each = vocab_size.bit_length() - 1
    wanted = int(bits // each)
    for tokens in range(wanted, 1, -1):
        spec = calibration.spec_for(place.curve, place.dims, tokens, calls - 1 - bool(place.curve.condition), vocab_size)
        if spec.start_budget + sum(s.budget for s in spec.schedule) <= wanted:
            return calibration.with_known_levels(spec, place.backbone)
    raise ValueError(f"{bits} bits are fewer than two tokens")


def shares(cost: Callable[[int], int], bits: float, steps: int) -> list[int]:
    """Atoms of each step: two neighbouring numbers, evenly mixed, that cost at least `bits` in all and least beyond."""
    few = 1
    while steps * cost(few + 1) <= bits:
        few += 1
    more = min(steps, max(0, math.ceil((bits - steps * cost(few)) / (cost(few + 1) - cost(few)))))
    return [few + ((i + 1) * more // steps > i * more // steps) for i in range(steps)]


def even_times(steps: int, budget: int | list[int]) -> tuple[Step, ...]:
    """DDCM's steps through evenly spaced times of Stable Diffusion's noise."""
    lams = schedule.scaled_linear()
    return schedule.falling([lams[round(999 - 999 * i / steps)] for i in range(steps + 1)], 0.5, budget)


def ddcm(place: Place, bits: float, calls: int) -> CodecSpec:
    """Matching pursuit, evenly spaced times. K counts signs (docs/rules.md). Where a picture would get a dozen atoms or
    more a step it is cut in blocks, for coefficients of 3 bits let a mixture hold no more."""
    steps = calls - 1
    long, rows, columns = place.width >= place.height, 1, 1
    if bits / steps > 12 * 17:
        n = 2
        while bits / (steps * 2 * n * n * 3 / 2) > 12 * 17:
            n *= 2
        rows, columns = (n, 3 * n // 2) if long else (3 * n // 2, n)
        rows, columns = (n, n) if place.width == place.height else (rows, columns)
    units = rows * columns
    vocab_size = min(ATOMS, 1 << max(2, math.ceil(bits / steps / units)))
    each = vocab_size.bit_length() - 1
    counts = shares(lambda m: units * (each * m + COEFFICIENT * (m - 1)), bits, steps)
    return place.spec(
        even_times(steps, counts),
        rule="pursuit",
        coefficient_bits=COEFFICIENT,
        vocab_size=vocab_size,
        rows=rows,
        columns=columns,
    )


def turbo(place: Place, bits: float, calls: int) -> CodecSpec:
    """Turbo-DDCM with its grid and its rule for steps without bits."""
    steps = calls - 1
    levels = schedule.turbo(20.0, 0.01, steps)
    atoms = min(atoms_of(place.dims), 1 << max(1, math.ceil(bits / steps) - 1))
    free = 0

    def cost(m: int) -> int:
        return subset_bits(atoms, m) if m <= atoms else 1 << 40

    for free in range(steps):  # the least number that its own rule gives for the atoms that it leaves room for
        counts = shares(cost, bits, steps - free)
        if schedule.turbo_free_steps(steps * cost(max(counts)), steps, place.height, place.width) <= free:
            break
    counts = shares(cost, bits, steps - free)
    coded = schedule.falling(levels[: steps - free + 1], 0.5, counts)
    rest = schedule.falling(levels[steps - free :], 1, 0) if free else ()
    return place.spec(coded + rest, rule="top", vocab_size=2 * atoms)


def turbo_on_ours(place: Place, bits: float, calls: int) -> CodecSpec:
    """Turbo-DDCM's rule with the levels, the start and the bits of each step of ours."""
    spec = ours(place, bits, calls)
    each, atoms = spec.vocab_size.bit_length() - 1, atoms_of(place.dims)
    owed, steps = 0.0, []
    for step in spec.schedule:
        owed += each * step.budget
        m = most_atoms(atoms, owed)
        owed -= subset_bits(atoms, m)
        steps.append(Step(step.sigma, step.sigma_down, step.sigma_next, m))
    return place.spec(
        tuple(steps),
        rule="top",
        vocab_size=2 * atoms,
        start_budget=spec.start_budget,
        start_vocab_size=spec.start_vocab_size,
    )


def turbo_from_noise(place: Place, bits: float, calls: int) -> CodecSpec:
    """The same from a fixed draw, one call earlier: the bits of our start are those of a first step."""
    spec = turbo_on_ours(place, bits, calls - 1)
    first = most_atoms(spec.vocab_size // 2, spec.start_budget * (spec.start_vocab_size.bit_length() - 1))
    level = spec.schedule[0].sigma
    steps = (Step(HIGHEST, level / HIGHEST * level, level, first), *spec.schedule)
    return place.spec(steps, rule="top", vocab_size=spec.vocab_size)


def diffc_steps(place: Place, useful: float, calls: int) -> tuple[list[float], list[float]]:
    """(levels, bits of divergence of each step) of a divergence-matched schedule that tells about `useful` bits in all."""
    gain = calibration.GAIN[15]
    tokens = useful * 2 * math.log(2) / gain  # tokens of 2^16 values that would tell as much
    spent = calibration.path(place.curve, place.dims, max(3, round(tokens)), calls - 2, 65536)
    total = sum(spent)
    levels = calibration.levels_of(place.curve, place.dims, [v * tokens / total for v in spent], 65536)
    levels = [HIGHEST, *levels]
    divergences = [
        place.dims * (1 / b**2 - 1 / a**2) * place.curve.at(a) / (2 * math.log(2))
        for a, b in zip(levels, levels[1:], strict=False)
    ]
    return levels, divergences


def diffc(place: Place, bits: float, calls: int) -> CodecSpec:
    """DiffC with a divergence-matched schedule, its bits of divergence all but those of padding (2 of 16 a chunk).

    Payloads follow the picture: what they cost is measured, and `bits` then corrected once (rate_distortion.py)."""
    levels, divergences = diffc_steps(place, bits * (CHUNK - 2) / CHUNK, calls)
    pairs = zip(levels, levels[1:], divergences, strict=False)
    steps = tuple(Step(a, b / a * b, b, max(1, round(divergence))) for a, b, divergence in pairs)
    return place.spec(steps, rule="poisson", vocab_size=1 << (CHUNK + 1))


CANDIDATES = {"default, 4 candidates": 4}  # of the encoder's look-ahead; the others have 1

MAKERS: dict[str, Maker] = {
    "default": ours,
    "default, 4 candidates": ours,
    "default, 2^20": partial(ours, vocab_size=1 << 20),
    "DDCM": ddcm,
    "Turbo-DDCM": turbo,
    "Turbo-DDCM on ours": turbo_on_ours,
    "DiffC": diffc,
}
