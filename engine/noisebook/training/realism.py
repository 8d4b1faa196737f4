"""What the network of the realism dial is trained for: pictures that look as the originals do, not far from the mean."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.nets.convnet import CHANNELS_LAST
from noisebook.backbones.nets.realism import RealismNetwork
from noisebook.training.decodes import Decodes, DecodeSet
from noisebook.training.perceptual import Trunk, distance

JUDGED = 8  # pictures at once


class Realism:
    """Loss of a `RealismNetwork` on a codec's decodes: `error` times the squared error, over the square of the level's
    scale, so that it counts alike at all rates; plus the `distance` of features; plus, where `adversarial` is above 0, that
    many times what a discriminator of patches says (hinge loss; the network is to be called real). The discriminator is
    trained beside it, and is part of the run's state.

    draw        (number of pictures, their side) -> decodes at random
    trunk       of what the features are
    """

    def __init__(
        self,
        draw: Callable[[int, int], Decodes],
        trunk: Trunk,
        device: str,
        mixed: bool,
        error: float,
        adversarial: float = 0.0,
        channels: int = 3,
    ):
        self.draw, self.mixed, self.error, self.adversarial = draw, mixed, error, adversarial
        self.trunk = trunk.to(device).to(**CHANNELS_LAST)
        self.judge_of_patches = discriminator(channels).to(device)
        self.optimizer = torch.optim.AdamW(self.judge_of_patches.parameters(), 2e-4, betas=(0.5, 0.99))

    def __call__(self, model: nn.Module, x0: Tensor, progress: float) -> Tensor:
        given = self.draw(len(x0), x0.shape[3])
        result = model(given.mean, given.y, given.sigma)
        error, features = self.parts(result, given)
        loss = (self.error * error + features).mean()
        if self.adversarial:
            loss = loss + self.adversarial * self._real(result, given.x0)
        return loss

    def parts(self, result: Tensor, given: Decodes) -> tuple[Tensor, Tensor]:
        """(the scaled squared error, the distance of features) of each picture, float32 [B]."""
        error = (result - given.x0).square().mean((1, 2, 3)) / RealismNetwork.scale(given.sigma) ** 2
        with torch.autocast(result.device.type, torch.bfloat16, enabled=self.mixed):
            with torch.no_grad():
                wanted = self.trunk(given.x0)
            return error, distance(self.trunk(result), wanted)

    def _real(self, result: Tensor, x0: Tensor) -> Tensor:
        """How far the discriminator is from calling the result real; before, it learns from both."""
        net = self.judge_of_patches
        with torch.autocast(result.device.type, torch.bfloat16, enabled=self.mixed):
            self.optimizer.zero_grad()  # of what the network's own loss left there
            (F.relu(1 - net(x0)).mean() + F.relu(1 + net(result.detach())).mean()).backward()
            self.optimizer.step()
            return -net(result).mean()

    @torch.no_grad()
    def measure(self, picture: Callable[[Decodes], Tensor], decodes: DecodeSet, rows: Tensor) -> dict[str, float]:
        """Means over pictures of the loss without its adversarial term, of mse, of psnr in dB (values clamped to [-1, 1])
        and of the distance of features, of what `picture` makes of the decodes in those rows."""
        found = []
        for some in rows.split(JUDGED):
            given = decodes.take(some)
            result = picture(given)
            error, features = self.parts(result, given)
            mse = (result.clamp(-1, 1) - given.x0).square().mean((1, 2, 3))
            found.append(torch.stack([self.error * error + features, mse, 10 * torch.log10(4 / mse), features]))
        return dict(zip(("loss", "mse", "psnr", "features"), torch.cat(found, 1).mean(1).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"patches": self.judge_of_patches.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge_of_patches.load_state_dict(state["patches"])
        self.optimizer.load_state_dict(state["optimizer"])


def discriminator(channels: int, width: int = 48) -> nn.Sequential:
    """Images [B, C, H, W] -> how real each patch of 22 x 22 pixels looks, [B, 1, H / 4 - 1, W / 4 - 1]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4, padding=1),
    )
