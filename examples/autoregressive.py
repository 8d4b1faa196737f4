"""A small autoregressive transformer on tokens of noisebook: how many bits of a token can be foretold, and what it draws.

    noisebook tokenize TRAIN -o tokens ...           # any codec whose images have one size
    noisebook tokenize TEST -o held-out ...          # the same codec
    python examples/autoregressive.py tokens held-out -o out --inputs TRAIN

Prints bits a token on the held-out images, beside those of a table of frequencies for each position and of a uniform guess,
and writes out/samples.png, tokens drawn one by one and decoded.

What a token means depends on its position, for each step has codebooks of its own; positions may also differ in the number
of their values, as those of a codebook start do. So each position has a table of embeddings of its own. With `--embedding
index` the tables are learned. With `--embedding codeword` nothing in them is learned: a token's row says how much of each
main axis of the training images is in the noise that the token adds. A codec without steps (CoD) has no such noise.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import noisebook
from noisebook.codec.codec import Codec
from noisebook.datasets import TokenDataset
from noisebook.spec.step import StepIndex

AXES = 64  # main axes of the images on which codewords are seen
LEARNED = 32  # numbers of an embedding that is learned
AT_ONCE = 4096  # codewords in memory
PATIENCE = 4  # looks at the validation images without a gain, after which training ends


class Transformer(nn.Module):
    """Tokens int64 [B, L] -> logits of each from those before it: L tensors [B, V], of as many values as the position has.

    values  number of values of a token at each position, L of them
    table   float32 [sum of values, F], what is known of each token, position after position; None: learned
    """

    def __init__(self, values: Sequence[int], table: Tensor | None, width: int = 96, layers: int = 2, heads: int = 4):
        super().__init__()
        self.values, length = list(values), len(values)
        self.register_buffer("begins", torch.tensor([0, *self.values[:-1]]).cumsum(0))
        if table is None:
            self.table = nn.Parameter(torch.randn(sum(values), LEARNED) / math.sqrt(LEARNED))
        else:
            self.register_buffer("table", table)
        features = self.table.shape[1]
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.inside = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.outside = nn.Linear(width, features)
        nn.init.zeros_(self.outside.weight)
        nn.init.zeros_(self.outside.bias)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        seen = tokens[:, : len(self.place) - 1]
        known = self.table[self.begins[: seen.shape[1]] + seen]
        x = torch.cat([self.first.expand(len(tokens), -1, -1), self.inside(known)], 1)
        x = x + self.place[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        wanted = self.outside(self.body(x, mask, is_causal=True))
        return [row @ part.T for row, part in zip(wanted.unbind(1), self.table.split(self.values), strict=False)]


@dataclass
class Learned:
    """A trained model, its bits a token on the held-out images (mean [L]), and how it came about."""

    model: Transformer
    bits: Tensor
    epochs: int
    minutes: float


def tokens_of(folder: str) -> Tensor:
    """Tokens int64 [N, L] of a data set."""
    return torch.from_numpy(np.stack([row["tokens"] for row in TokenDataset(folder)]).astype(np.int64))


def values_of(codec: Codec, size: tuple[int, int]) -> list[int]:
    """The number of values of a token at each position."""
    return codec.layout_for(*size).vocab_size.tolist()


def codewords(codec: Codec, size: tuple[int, int], images: Tensor) -> Tensor:
    """float32 [sum of V, 2 A]: for every value at every position the noise that it adds, on the A main axes of uint8 images
    [N, C, H, W], and its squares, which tell how a spread along an axis favours it; each of variance 1 / A over the values.
    The other tokens of the step are held, which all but fixes their part."""
    stream, x, values = codec.stream(*size), images.flatten(1).float(), iter(values_of(codec, size))
    axes = torch.pca_lowrank(x - x.mean(0), min(AXES, *x.shape), center=False)[2]  # [C H W, A]
    out = []
    for some in stream.segments:
        rule = codec.start_rule if some.step_index == StepIndex.START else codec.rule
        for slot in range(some.count):
            tokens = torch.zeros(next(values), some.count, dtype=torch.int64)
            tokens[:, slot] = torch.arange(len(tokens))
            how = (stream.blocks, stream.dims), some.budget, some.step_index
            seen = torch.cat([stream.join(rule.noise(t, *how)).flatten(1) @ axes for t in tokens.split(AT_ONCE)])
            both = torch.cat([seen - seen.mean(0), seen.square() - seen.square().mean(0)], 1)
            out.append(both / both.std(0).clamp(min=1e-6))
    return torch.cat(out) / math.sqrt(axes.shape[1])


def nats(model: Transformer, tokens: Tensor) -> Tensor:
    """Cross-entropy of each token of [B, L], [B, L]."""
    pairs = zip(model(tokens), tokens.T, strict=True)
    return torch.stack([F.cross_entropy(logits, wanted, reduction="none") for logits, wanted in pairs], 1)


def bits_of(model: Transformer, tokens: Tensor) -> Tensor:
    """Mean bits of the token at each position, [L]."""
    model.eval()
    with torch.no_grad():
        return torch.cat([nats(model, some) for some in tokens.split(50)]).mean(0) / math.log(2)


def frequency_bits(train: Tensor, held_out: Tensor, values: Sequence[int]) -> Tensor:
    """The same of a table of frequencies for each position, every value counted once more than it was seen."""
    out = []
    for seen, asked, size in zip(train.T, held_out.T, values, strict=True):
        counts = torch.bincount(seen, minlength=size) + 1.0
        out.append(-torch.log2(counts / counts.sum())[asked].mean())
    return torch.stack(out)


def learn(
    train: Tensor, held_out: Tensor, values: Sequence[int], table: Tensor | None, epochs: int, seed: int = 0, batch: int = 50
) -> Learned:
    """Trains on nine tenths of `train` until the last tenth gains no more, `epochs` times at most; the best state counts."""
    torch.manual_seed(seed)
    cut = len(train) * 9 // 10
    part, rest = train[:cut], train[cut:]
    model = Transformer(values, table)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3)
    begin, best, kept, worse, epoch = time.monotonic(), math.inf, {}, 0, 0
    while worse < PATIENCE and epoch < epochs:
        model.train()
        for rows in torch.randperm(cut).split(batch):
            loss = nats(model, part[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        epoch, found = epoch + 1, float(bits_of(model, rest).mean())
        worse = 0 if found < best else worse + 1
        if found < best:
            best, kept = found, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return Learned(model, bits_of(model, held_out), epoch, (time.monotonic() - begin) / 60)


@torch.no_grad()
def draw(model: Transformer, count: int, seed: int = 0) -> Tensor:
    """Tokens int64 [count, L], one after the other from what the model says."""
    random = torch.Generator().manual_seed(seed)
    model.eval()
    tokens = torch.zeros(count, 0, dtype=torch.int64)
    for _ in range(len(model.place)):
        chances = model(tokens)[-1].softmax(1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=random)], 1)
    return tokens


def grid(images: Tensor, columns: int = 8) -> Image.Image:
    """float images [N, C, H, W] about in [-1, 1] side by side."""
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().byte()
    n, c, h, w = pixels.shape
    rows = pixels[: n // columns * columns].view(-1, columns, c, h, w).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.reshape(-1, columns * w, c).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens")
    parser.add_argument("held_out")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--embedding", choices=("index", "codeword"), default="codeword")
    parser.add_argument("--inputs", help="embedding codeword: the pictures that `tokens` was made of")
    parser.add_argument("--backbone", help="where the codec's network is, if it did not come with the package")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = TokenDataset(args.tokens, inputs=args.inputs)
    train, held_out = tokens_of(args.tokens), tokens_of(args.held_out)
    codec, size = noisebook.load(data.spec, backbone=args.backbone), (data[0]["height"], data[0]["width"])
    values, table = values_of(codec, size), None
    if args.embedding == "codeword":
        images = torch.from_numpy(np.stack([data.original(i) for i in range(min(1000, len(data)))])).permute(0, 3, 1, 2)
        table = codewords(codec, size, images)
    found = learn(train, held_out, values, table, args.epochs, args.seed)
    uniform = sum(map(math.log2, values)) / len(values)
    print(
        f"bits a token on {len(held_out)} images: {float(found.bits.mean()):.3f} of {uniform:.3f}, a table of "
        f"frequencies {float(frequency_bits(train, held_out, values).mean()):.3f}; {found.epochs} epochs"
    )
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = draw(found.model, args.samples, args.seed)
    grid(torch.cat([codec.decode(some, size) for some in drawn.split(32)])).save(args.output / "samples.png")


if __name__ == "__main__":
    main()
