"""What moves the weights: AdamW, or Muon for the matrices inside a network and AdamW for the rest."""

from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) on all weights, or, named "muon", Muon (Jordan et al. 2024) on the convolutions that
    keep their width, each as a matrix [out, height * width * in].

    Muon's steps are scaled to the size of AdamW's, so one learning rate serves both. `model` is in channels_last, where
    such a matrix is the weight's own memory.
    """

    def __init__(self, model: nn.Module, name: str):
        inner = [p for p in model.parameters() if name == "muon" and p.ndim == 4 and p.shape[0] == p.shape[1]]
        rest = [p for p in model.parameters() if not any(p is q for q in inner)]
        self.matrices = [(p, nn.Parameter(_matrix(p.detach()))) for p in inner]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, weight_decay=1e-4, betas=(0.9, 0.99))]
        if inner:
            muon = torch.optim.Muon([m for _, m in self.matrices], weight_decay=1e-4, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)

    def step(self, learning_rate: float) -> None:
        """One step down the gradients that the model's parameters hold, which are then empty."""
        for p, matrix in self.matrices:
            assert p.grad is not None
            matrix.grad, p.grad = _matrix(p.grad.contiguous(memory_format=torch.channels_last)), None
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)


def _matrix(weight: Tensor) -> Tensor:
    """[O, I, H, W] in channels_last -> [O, H * W * I], the same memory."""
    return weight.permute(0, 2, 3, 1).view(len(weight), -1)
