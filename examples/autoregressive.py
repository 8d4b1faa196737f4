"""A small autoregressive transformer on tokens of noisebook: how many bits of a token can be foretold, and what it draws.

    noisebook tokenize TRAIN -o tokens ...           # any codec whose images have one size
    noisebook tokenize TEST -o held-out ...          # the same codec
    python examples/autoregressive.py tokens held-out -o out --inputs TRAIN

Prints bits a token on the held-out images, beside those of a table of frequencies for each position and of a uniform guess,
and writes out/samples.png, tokens drawn one by one and decoded.

What a token means depends on its position, for each step has codebooks of its own. So each position has embeddings of its
own (`--embedding index`), or, for codecs with steps, each token is shown as the codeword that it names (`--embedding
codeword`): its coordinates on the main axes of the training images, known without any training.
"""

import argparse
import math
import time
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
PATIENCE = 4  # looks at the validation images without a gain, after which training ends


class Transformer(nn.Module):
    """Tokens int64 [B, L] -> logits [B, L, V] of each from those before it.

    table  float32 [L, V, F], what is known of each token; None: learned
    """

    def __init__(self, length: int, values: int, table: Tensor | None, width: int = 96, layers: int = 2, heads: int = 4):
        super().__init__()
        if table is None:
            self.table = nn.Parameter(torch.randn(length, values, LEARNED) / math.sqrt(LEARNED))
        else:
            self.register_buffer("table", table)
        features = self.table.shape[2]
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.inside = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.outside = nn.Linear(width, features)
        nn.init.zeros_(self.outside.weight)
        nn.init.zeros_(self.outside.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens[:, : len(self.place) - 1]
        places = torch.arange(seen.shape[1])
        x = torch.cat([self.first.expand(len(tokens), -1, -1), self.inside(self.table[places, seen])], 1)
        x = x + self.place[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        wanted = self.outside(self.body(x, mask, is_causal=True))
        return torch.einsum("blf,lvf->blv", wanted, self.table[: x.shape[1]])


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


def codewords(codec: Codec, size: tuple[int, int], values: int, images: Tensor) -> Tensor:
    """float32 [L, V, 2 AXES]: for every value at every position the noise that it adds, on the main axes of uint8 `images`
    [N, C, H, W], and its squares, which tell how a spread along an axis favours it; each of variance 1 / AXES over the
    values. The other tokens of the step are held, which all but fixes their part."""
    stream, x = codec.stream(*size), images.flatten(1).float()
    axes = torch.pca_lowrank(x - x.mean(0), AXES, center=False)[2]  # [C H W, AXES]
    out = []
    for some in stream.segments:
        rule = codec.start_rule if some.step_index == StepIndex.START else codec.rule
        for slot in range(some.count):
            tokens = torch.zeros(values, some.count, dtype=torch.int64)
            tokens[:, slot] = torch.arange(values)
            noise = rule.noise(tokens, (stream.blocks, stream.dims), some.budget, some.step_index)
            seen = stream.join(noise).flatten(1) @ axes
            both = torch.cat([seen - seen.mean(0), seen.square() - seen.square().mean(0)], 1)
            out.append(both / both.std(0).clamp(min=1e-6))
    return torch.stack(out) / math.sqrt(AXES)


def bits_of(model: Transformer, tokens: Tensor) -> Tensor:
    """Mean bits of the token at each position, [L]."""
    model.eval()
    with torch.no_grad():
        parts = [F.cross_entropy(model(t).flatten(0, 1), t.flatten(), reduction="none").view_as(t) for t in tokens.split(50)]
    return torch.cat(parts).mean(0) / math.log(2)


def frequency_bits(train: Tensor, held_out: Tensor, values: int) -> Tensor:
    """The same of a table of frequencies for each position, every value counted once more than it was seen."""
    counts = torch.stack([torch.bincount(column, minlength=values) for column in train.T]) + 1.0
    share = counts / counts.sum(1, keepdim=True)
    return -torch.log2(share.gather(1, held_out.T)).mean(1)


def learn(
    train: Tensor, held_out: Tensor, values: int, table: Tensor | None, epochs: int, seed: int = 0, batch: int = 50
) -> Learned:
    """Trains on nine tenths of `train` until the last tenth gains no more, `epochs` times at most; the best state counts."""
    torch.manual_seed(seed)
    cut = len(train) * 9 // 10
    part, rest = train[:cut], train[cut:]
    model = Transformer(train.shape[1], values, table)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3)
    begin, best, kept, worse, epoch = time.monotonic(), math.inf, {}, 0, 0
    while worse < PATIENCE and epoch < epochs:
        model.train()
        for rows in torch.randperm(cut).split(batch):
            loss = F.cross_entropy(model(part[rows]).flatten(0, 1), part[rows].flatten())
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
        chances = model(tokens)[:, -1].softmax(1)
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
    values, table = int(codec.layout_for(*size).vocab_size.max()), None
    if args.embedding == "codeword":
        images = torch.from_numpy(np.stack([data.original(i) for i in range(min(1000, len(data)))])).permute(0, 3, 1, 2)
        table = codewords(codec, size, values, images)
    found = learn(train, held_out, values, table, args.epochs, args.seed)
    print(
        f"bits a token on {len(held_out)} images: {float(found.bits.mean()):.3f} of {math.log2(values):.3f}, a table of "
        f"frequencies {float(frequency_bits(train, held_out, values).mean()):.3f}; {found.epochs} epochs"
    )
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = draw(found.model, args.samples, args.seed)
    grid(torch.cat([codec.decode(some, size) for some in drawn.split(32)])).save(args.output / "samples.png")


if __name__ == "__main__":
    main()
