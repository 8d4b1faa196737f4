"""Rule `pursuit` (DDCM, arXiv 2502.01189): matching pursuit, M atoms one after the other with coefficients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noisebook.errors import SpecError
from noisebook.rules.base import Rule, RunTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pursuit(Rule):
    """A budget of M atoms. After the best one, M - 1 rounds each mix in one more, sqrt(g) z + sqrt(1 - g) z_k at root mean
    square 1, with the coefficient g in {1, ..., 2^C - 1} / (2^C - 1) and the atom (here with its sign) that raise <z, r>
    most. A coefficient of 0 ends it, and all later tokens are 0.

    Tokens: M atoms a view, then M - 1 coefficients a view. All scores are stored: for vocabularies up to about 2^16.
    Sums are float32 in a fixed order, not exact integers as in the other rules.
    """

    unit = "atoms"
    whole_bits = True

    @classmethod
    def check_spec(cls, vocab_size: int, coefficient_bits: int, budgets: Sequence[int], scaled: bool, blocks: int) -> None:
        if coefficient_bits == 1:
            raise SpecError(
                "coefficients of 1 bit know the single value 1, which adds nothing of a second atom: use 2 or more"
            )
        least = 2 if scaled or max(budgets, default=0) > 1 else 0
        if not least <= coefficient_bits <= 16:
            raise SpecError(f"rule pursuit needs coefficient_bits of 2 to 16, not {coefficient_bits}")

    @classmethod
    def runs(cls, budget: int, blocks: int, vocab_size: int, coefficient_bits: int) -> tuple[RunTuple, ...]:
        atoms = (budget * blocks, vocab_size, 0, 0)
        return (atoms, ((budget - 1) * blocks, 1 << coefficient_bits, 0, 0)) if budget > 1 else (atoms,)

    def select(self, residual: "Tensor", budget: int, step_index: int, keep: float, sigma_up: float) -> "Tensor":
        import torch

        batch, blocks, dims = residual.shape
        atoms = self.book.select(residual, 1, step_index)
        if budget == 1:
            return atoms.flatten(1)
        scores = self.book.scores(residual, step_index)  # [B, U, K]
        z = self.book.noise(atoms, dims, step_index)
        found, marks, going = [atoms[..., 0]], [], torch.ones(batch, blocks, dtype=torch.bool, device=z.device)
        largest = (1 << self.coefficient_bits) - 1
        for _ in range(budget - 1):
            inner = (z * residual).sum(-1)
            along = self.book.scores(z, step_index)
            apart = along.abs() < 0.9 * dims  # an atom that z holds already: lengths of cut atoms are not known so well
            best, atom, mark = inner.clone(), torch.zeros_like(atoms[..., 0]), torch.zeros_like(atoms[..., 0])
            for c in range(1, largest):  # c = largest leaves z unchanged
                a, b = math.sqrt(c / largest), math.sqrt(1 - c / largest)
                for sign in (0, 1):
                    flip = b * (1 - 2 * sign)
                    length = (1 + 2 * a * flip * along / dims).clamp(min=1e-6).sqrt()
                    value, k = ((a * inner[..., None] + flip * scores) / length).where(apart, -math.inf).max(-1)
                    better = going & (value > best * (1 + 1e-6))
                    best, mark = torch.where(better, value, best), torch.where(better, c, mark)
                    atom = torch.where(better, 2 * k + sign, atom)
            going = mark > 0
            found.append(atom)
            marks.append(mark)
            z = self._mixed(z, atom, mark, step_index)
        return torch.cat([torch.stack(found, -1).flatten(1), torch.stack(marks, -1).flatten(1)], 1)

    def _mixed(self, z: "Tensor", atom: "Tensor", mark: "Tensor", step_index: int) -> "Tensor":
        """One round: views float32 [B, U, D], atoms and coefficients int64 [B, U] -> the mixture."""
        import torch

        share = (mark.float() / ((1 << self.coefficient_bits) - 1))[..., None]
        other = self.book.noise(atom[..., None], z.shape[-1], step_index)
        mixed = share.sqrt() * z + (1 - share).sqrt() * other
        mixed = mixed / mixed.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
        return torch.where(mark[..., None] > 0, mixed, z)

    def noise(self, tokens: "Tensor", views: tuple[int, int], budget: int, step_index: int) -> "Tensor":
        atoms, marks = tokens.split([views[0] * budget, views[0] * (budget - 1)], 1)
        atoms, marks = atoms.unflatten(1, (views[0], budget)), marks.view(len(tokens), views[0], budget - 1)
        z = self.book.noise(atoms[..., :1], views[1], step_index)
        for m in range(1, budget):
            z = self._mixed(z, atoms[..., m], marks[..., m - 1], step_index)
        return z
