"""Pictures become tokens in the workers of a torch DataLoader, while a model trains on them.

    python examples/loader_of_pictures.py FOLDER

FOLDER has pictures of any size, of which the middle is taken. Here the model only counts how often each value comes, which
is where a training step of yours would stand. Each picture is encoded again in every epoch, and the first line says what
that costs: what you read more than once, tokenise once (training_loop.py).
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from noisebook.torch import Transform


class Pictures(Dataset):
    def __init__(self, folder: str, side: int, transform: Transform):
        self.paths, self.side, self.transform = sorted(Path(folder).iterdir()), side, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        square = ImageOps.fit(Image.open(self.paths[i]).convert("RGB"), (self.side, self.side))
        return self.transform(square)  # int64 [L]


def main(folder: str, side: int = 64, workers: int = 2, batch_size: int = 16, preset: str = "photo-low", **options):
    """Returns how often each value was seen, int64 [values]."""
    transform = Transform(preset, **options)
    print(transform.cost((side, side)))
    values = int(transform.codec.layout_for(side, side).vocab_size.max())
    counts = torch.zeros(values, dtype=torch.int64)
    for tokens in DataLoader(Pictures(folder, side, transform), batch_size, num_workers=workers):  # int64 [B, L]
        counts += torch.bincount(tokens.flatten(), minlength=values)
    print(f"{int(counts.sum())} tokens; {int((counts > 0).sum())} of {values} values were seen")
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
