"""A network of your own under the codec: here a small one, trained by flow matching for some seconds on one picture.

    python examples/own_network.py PICTURE decoded.png

Any network that predicts noise, velocity, score or the clean image has an adapter: docs/backbones.md. The fingerprint names
the weights, so that tokens are never decoded with others.
"""

import sys

import torch
from PIL import Image
from torch import Tensor, nn

import noisebook
from noisebook.backbones import fingerprint_of
from noisebook.backbones.families.flow import Flow
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image


class Velocity(nn.Module):
    """x_t [B, 3, H, W] and t [B], from 0 (picture) to 1 (noise) -> the velocity eps - x0."""

    def __init__(self, width: int = 32):
        super().__init__()
        sizes = [4, width, width, width, 3]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([x, t.to(x.dtype)[:, None, None, None].expand_as(x[:, :1])], 1)
        for layer in self.layers[:-1]:
            h = layer(h).relu()
        return self.layers[-1](h)


def train(net: nn.Module, images: Tensor, steps: int) -> None:
    """`images` [1, 3, H, W] in [-1, 1], of which crops of 32 x 32 are drawn."""
    crops = nn.functional.unfold(images, 32, stride=16).transpose(1, 2).reshape(-1, 3, 32, 32)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        x0 = crops[torch.randint(len(crops), (16,))]
        eps, t = torch.randn_like(x0), torch.rand(len(x0))
        loss = (net(torch.lerp(x0, eps, t[:, None, None, None]), t) - (eps - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(picture: str, output: str, training_steps: int = 500, **options) -> Tensor:
    """Returns the decoded picture, float32 [3, H, W] in about [-1, 1]."""
    torch.manual_seed(0)
    net, pixels = Velocity(), torch.from_numpy(read_image(picture)).permute(2, 0, 1)[None]  # uint8 [1, 3, H, W]
    train(net, pixels / 127.5 - 1, training_steps)

    backbone = Flow(net)
    backbone.name, backbone.fingerprint = "my-velocity", fingerprint_of({"kind": "my-velocity"}, net.state_dict())
    recipe = {"steps": 24, "budget": 16, "budget_last": 256, "scale_pixels": 0, "start_budget": 0, **options}
    codec = noisebook.load("photo", backbone=backbone, **recipe)
    tokens, images = codec.reconstruct(pixels)  # the tokens, and what `decode` makes of them
    print(f"{tokens.shape[1]} tokens, mean squared error {(images - pixels / 127.5 + 1).square().mean():.4f} in [-1, 1]")
    Image.fromarray(pixels_of(images[0])).save(output)
    return images[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
