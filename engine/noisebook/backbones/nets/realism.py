"""The network behind the realism dial: after a decode to the least error it makes the convincing picture.

A decode to the least error is a mean of all pictures that fit the tokens, so it is smoother than any of them. This network
is given that mean, the state y and the level at which the tokens end. It was trained on a codec's own decodes with a
perceptual loss (`noisebook.training.realism`). (1 - r) mean + r convincing picture is the best picture between the two by
squared error (Freirich et al. 2021, "A theory of the distortion-perception tradeoff in Wasserstein space").
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from noisebook.backbones.checkpoint import check_size
from noisebook.backbones.nets.convnet import CHANNELS_LAST, ConvDenoiser

MOST_WIDTHS, MOST_MULTIPLE = 8, 256  # of a file's network: a small picture is padded to one multiple


class NoPrior(nn.Module):
    """In place of a `ConvDenoiser`'s prior: the linear guess comes from outside."""

    size = None

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels


class RealismNetwork(ConvDenoiser):
    """network(mean, y, sigma) -> the convincing picture: the U-Net of `photo` corrects the mean as there the Wiener filter.

    `widths`, `blocks`, `embedding` and `patch` are those of `ConvDenoiser`. A fresh network changes nothing.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = (80, 128, 128),
        blocks: int = 2,
        embedding: int = 128,
        patch: int = 4,
    ):
        super().__init__(cast(Any, NoPrior(channels)), widths, blocks, embedding, patch)
        self.config |= {"channels": channels}

    def forward(self, mean: Tensor, y: Tensor, sigma: Tensor) -> Tensor:  # type: ignore[override]
        """mean and y [B, C, H, W], sigma float32 [B] -> [B, C, H, W]; height and width are multiples of `multiple`."""
        return self.correct(mean, y, sigma)


def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> RealismNetwork:
    """The network from a checkpoint of kind `realism`: weights are stored in bf16 and run in float32.

    A `fingerprint` in the config names the backbone that it was trained for and is none of the network's own. Raises
    ValueError, or what torch raises, where config and tensors do not fit."""
    config = {name: value for name, value in config.items() if name != "fingerprint"}
    if len(config.get("widths", ())) > MOST_WIDTHS:
        raise ValueError(f"more than {MOST_WIDTHS} widths")
    if min(config.get("patch", 1), config.get("embedding", 1)) < 1 or config.get("channels", 3) not in (1, 3):
        raise ValueError("patch and embedding are at least 1, and a picture has 1 or 3 channels")
    check_size(lambda: RealismNetwork(**config), tensors)
    network = RealismNetwork(**config)
    if network.multiple > MOST_MULTIPLE:
        raise ValueError(f"it takes multiples of {network.multiple} pixels, more than {MOST_MULTIPLE}")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.to(**CHANNELS_LAST).eval().requires_grad_(False)
