"""A plain training loop of torch on tokens: a small model learns to foretell each token from those before it.

    noisebook tokenize PICTURES -o TOKENS --preset photo-low --resize 64
    python examples/training_loop.py TOKENS

Pictures are tokenised once, and the loop reads integers. autoregressive.py is a larger one, with held-out pictures.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

import noisebook
from noisebook.datasets import TokenDataset


class Model(nn.Module):
    """ids int64 [B, T] -> logits [B, T, V] of the next id at each place."""

    def __init__(self, vocab_size: int, length: int, width: int = 128):
        super().__init__()
        self.ids, self.places = nn.Embedding(vocab_size, width), nn.Parameter(torch.zeros(length, width))
        self.body, self.out = nn.GRU(width, width, batch_first=True), nn.Linear(width, vocab_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(self.ids(ids) + self.places[: ids.shape[1]])[0])


def main(tokens: str, epochs: int = 5, batch_size: int = 16, backbone=None) -> list[float]:
    """`backbone` is as of noisebook.load, where it did not come with the package. Returns the loss of each epoch."""
    data = TokenDataset(tokens, dtype="int64")
    codec, size = noisebook.load(data.spec, backbone=backbone), (data[0]["height"], data[0]["width"])
    ids = codec.vocabulary(size, offset=1, bos=0)  # 0 begins a picture, tokens follow
    torch.manual_seed(0)
    model = Model(ids.size, ids.length)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    for epoch in range(epochs):
        total = 0.0
        for batch in DataLoader(data, batch_size, shuffle=True):
            sequence = codec.to_sequence(batch["tokens"], size, offset=1, bos=0)  # int64 [B, 1 + L]
            loss = nn.functional.cross_entropy(model(sequence[:, :-1]).flatten(0, 1), sequence[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(sequence)
        losses.append(total / len(data))
        print(f"epoch {epoch + 1}: {losses[-1]:.3f} nats per token")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
