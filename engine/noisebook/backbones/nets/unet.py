"""diffusers' `UNet2DModel` in the place of the plain network of `convnet`: what `noisebook train --network unet` trains."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones.extras import needs
from noisebook.backbones.nets.convnet import PriorBackbone, PriorDenoiser, prior_backbone
from noisebook.backbones.nets.gaussian import DCTPrior, SpectrumPrior


class UNetDenoiser(PriorDenoiser):
    """A `UNet2DModel` as the raw network F, on blocks of `patch` x `patch` pixels, with attention on the lowest level.

    `widths` and `blocks` are diffusers' block_out_channels and layers_per_block. Raises BackboneError without diffusers.
    """

    def __init__(
        self, prior: SpectrumPrior | DCTPrior, widths: Sequence[int] = (64, 128, 128), blocks: int = 1, patch: int = 2
    ):
        super().__init__(prior, {"widths": list(widths), "blocks": blocks, "patch": patch})
        with needs("diffusers", "diffusers"):
            import diffusers
        library: Any = diffusers  # its classes are loaded when they are named
        self.patch, self.multiple = patch, patch << (len(widths) - 1)
        plain, channels = len(widths) - 1, self.channels * patch**2
        self.unet = library.UNet2DModel(
            in_channels=2 * channels,
            out_channels=channels,
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=16,
            attention_head_dim=32,
        )
        self.unet.conv_out.weight.data.zero_()

    def residual(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """F. ln sigma / 4 stands where EDM has its c_noise, times 1000: the embedding was made for a thousand timesteps."""
        blocks = F.pixel_unshuffle(x, self.patch).to(self.unet.dtype)
        return F.pixel_shuffle(self.unet(blocks, 250 * log_sigma).sample, self.patch).float()


def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> PriorBackbone:
    """The backbone from a checkpoint of kind `unet`: network weights are stored in bf16 and run in float32."""
    return prior_backbone(UNetDenoiser, config, tensors)
