"""The network behind the realism dial: after a decode to the least error it makes the convincing picture.

A decode to the least error is a mean of all pictures that fit the tokens, so it is smoother than any of them. This network
is given that mean, the state y and the level at which the tokens end. It was trained on a codec's own decodes with a
perceptual loss (`noisebook.training.realism`). (1 - r) mean + r convincing picture is the best picture between the two by
squared error (Freirich et al. 2021, "A theory of the distortion-perception tradeoff in Wasserstein space").
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from noisebook.backbones.nets.convnet import CHANNELS_LAST, ConvDenoiser


class NoPrior(nn.Module):
    """Stands where a `ConvDenoiser` has its prior: the linear guess comes from outside."""

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
    """The network from a checkpoint of kind `realism`: weights are stored in bf16 and run in float32."""
    network = RealismNetwork(**config)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.to(**CHANNELS_LAST).eval().requires_grad_(False)
