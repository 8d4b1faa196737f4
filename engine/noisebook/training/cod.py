"""Training of CoD (arXiv 2511.18706): flow matching and one-step prediction at once, on a vector-quantised condition."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.cod.condition import EMPTY
from noisebook.backbones.cod.nets import CodConfig, CodNet, DiTBlock
from noisebook.backbones.nets.autoencoders import Autoencoder
from noisebook.errors import TrainingError
from noisebook.training.objectives import Objective

# In the loss of quantisation, the weight of the part that moves the code vectors; the part that moves the encoder, the
# commitment, has 1. So it is in CoD's published code; VQ-VAE (arXiv 1711.00937) weighs the commitment by it.
CODEBOOK = 0.25
QUANTISATION = 0.25  # weight of that loss in the whole
DROPPED = 0.1  # share of images that get the condition for "none"; 1: a plain flow, and the condition codec is not trained
ALIGNED = 0.5  # weight of each of the two alignments with the features of another network
SHARE = 0.75  # share of images at a random time; the others are at t = 0, where one step must do


class CodModel(nn.Module):
    """What is trained: the network, and small heads that only training has. One head leads from the condition straight to
    pixels. With `features` above 0, two more lead from the condition and from the state of an early block to that many
    features at each place.

    It is called as any model that is trained here, D(y [B, C, h, w], sigma [B]) -> x0_hat, without a condition.
    A latent model has an `autoencoder`, which is not trained and no part of the module; `states` are what the network
    works on."""

    def __init__(self, config: CodConfig, features: int = 0, autoencoder: Autoencoder | None = None):
        super().__init__()
        self.encode: Callable[[Tensor], Tensor] | None = autoencoder.encode if autoencoder is not None else None
        self.net, self.mixed = CodNet(config), False
        wide, out = config.hidden, config.channels * config.patch**2
        self.recon = nn.Sequential(
            nn.Conv2d(wide, wide, 1), nn.SiLU(), nn.Conv2d(wide, wide, 1), nn.SiLU(), nn.Conv2d(wide, out, 1)
        )
        self.early = max(1, round(config.cond_blocks * 8 / 26))  # the paper's eighth block of 26
        widths = (wide, wide, wide, features)
        self.proj = nn.ModuleList(_layers(widths) for _ in range(2 if features else 0))
        codes = self.net.y_embedder.bottleneck.embedding.weight
        nn.init.uniform_(codes, -1 / len(codes), 1 / len(codes))  # near together, so that all are used
        for block in self.net.blocks:  # each begins as the identity (DiT, arXiv 2212.09748)
            for p in block.adaLN_modulation.parameters() if isinstance(block, DiTBlock) else ():
                nn.init.zeros_(p)

    @property
    def channels(self) -> int:
        return self.net.config.channels

    @property
    def multiple(self) -> int:
        """Sides of the crops are multiples of this."""
        return max(self.net.y_embedder.stride, self.net.config.cell)

    @torch.no_grad()
    def states(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> what the network works on: themselves, or scaled latents, [B, C, h, w]."""
        return images if self.encode is None else self.encode(images) * self.net.config.scale

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        t = 1 / (1 + sigma)
        x = y * t[:, None, None, None]
        factor = self.net.config.cell // self.net.config.patch
        none = self.net.y_embedder.unconditional(y.shape[2] * factor, y.shape[3] * factor, y)
        return x + (1 - t)[:, None, None, None] * self.net(x, t, none)

    def quantised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] or EMPTY -> (codes through which gradients reach the encoder, the loss of quantisation)."""
        codec = self.net.y_embedder
        z = codec.encoder(images).float()
        e = codec.bottleneck.vectors(codec.bottleneck.tokens(z))
        loss = CODEBOOK * F.mse_loss(e, z.detach()) + F.mse_loss(z, e.detach())
        return z + (e - z).detach(), loss


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


Extractor = Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [-1, 1] -> features [B, C, h, w]


def read_extractor(path: Path, device: str, side: int) -> tuple[Extractor, int]:
    """(the TorchScript network in a file, its features C), tried on an image of `side` pixels. TorchScript is a program, and
    it is run: `path` is what the user typed, never what a file says.

    Raises TrainingError where the file holds no such network, or one that gives something else than [B, C, h, w]."""
    try:
        net = torch.jit.load(str(path), map_location=device).eval()
        with torch.no_grad():
            features = net(torch.zeros(1, 3, side, side, device=device))
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # TorchScript ends with what went wrong
        raise TrainingError(f"{path}: no TorchScript network that takes images [B, 3, {side}, {side}] ({reason})") from error
    if not isinstance(features, Tensor) or features.ndim != 4:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise TrainingError(f"{path}: gives {shape}, not features [B, C, h, w]: fold its places into a grid")
    return net, features.shape[1]


def cod(
    share: float = SHARE, dropped: float = DROPPED, reconstruct: float = 1.0, extractor: Extractor | None = None
) -> Objective:
    """|v - (x0 - eps)|^2 at x_t = t x0 + (1 - t) eps, which at t = 0 is the error of one step. t is the sigmoid of a normal
    number for a `share` of the images and 0 for the others (unified training). To this are added the loss of quantisation,
    and `reconstruct` times the error of the pixels, or latents, that are read off the condition only.

    A share `dropped` of the images gets no condition, as in the published code: the condition codec is handed the empty
    image in place of each, so that it learns the condition for "none" with the others, and what is read off that condition
    is compared with nothing: its errors count 0 in the means.

    An `extractor`, for a model that has its `features`, adds 1 - cos between these and what the model's heads make of the
    condition and of an early block's state, place by place (as in REPA, arXiv 2410.06940)."""

    def loss(model: nn.Module, x0: Tensor, progress: float) -> Tensor:
        assert isinstance(model, CodModel)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=model.mixed):
            return _loss(model, x0.contiguous(), share, dropped, reconstruct, extractor)

    return loss


def _loss(
    model: CodModel, x0: Tensor, share: float, dropped: float, reconstruct: float, extractor: Extractor | None
) -> Tensor:
    states = model.states(x0)
    if dropped == 1:
        with torch.no_grad():
            none = model.net.y_embedder.unconditional(x0.shape[2], x0.shape[3], x0)
        return _flow(model, states, share, none)
    kept = (torch.rand(len(x0), device=x0.device) >= dropped)[:, None, None, None]
    codes, quantisation = model.quantised(torch.where(kept, x0 / 2 + 0.5, EMPTY))
    condition = model.net.y_embedder.decoder(codes)
    seen = F.pixel_shuffle(model.recon(condition), model.net.config.patch)
    if extractor is None:
        flow = _flow(model, states, share, condition)
    else:
        early: list[Tensor] = []
        with model.net.blocks[model.early - 1].register_forward_hook(lambda *call: early.append(call[-1])):
            flow = _flow(model, states, share, condition)
        both = (condition.flatten(2).transpose(1, 2), early[0])
        apart = _apart(model, extractor, x0, both, (condition.shape[2], condition.shape[3]))
        flow = flow + ALIGNED * ((apart[0] * kept[:, 0, 0]).mean() + apart[1].mean())
    return flow + reconstruct * ((seen.float() - states).square() * kept).mean() + QUANTISATION * quantisation


def _apart(
    model: CodModel, extractor: Extractor, x0: Tensor, states: tuple[Tensor, Tensor], grid: tuple[int, int]
) -> list[Tensor]:
    """Of both states [B, N, hidden]: 1 - cos [B, N] between what their heads make of them and the features there."""
    with torch.no_grad():
        features = F.interpolate(extractor(x0).float(), grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    pairs = zip(model.proj, states, strict=True)
    return [1 - F.cosine_similarity(head(s).float(), features, -1) for head, s in pairs]


def _flow(model: CodModel, x0: Tensor, share: float, condition: Tensor) -> Tensor:
    device, count = x0.device, len(x0)
    t = torch.where(torch.rand(count, device=device) < share, torch.sigmoid(torch.randn(count, device=device)), 0.0)
    eps, at = torch.randn_like(x0), t[:, None, None, None]
    v = model.net(at * x0 + (1 - at) * eps, t, condition)
    return F.mse_loss(v.float(), x0 - eps)


def tensors_of(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, weights in bfloat16) of a checkpoint of kind `cod`, without the heads that only training has."""
    assert isinstance(model, CodModel)
    return asdict(model.net.config), {k: v.to(torch.bfloat16) for k, v in model.net.state_dict().items()}
