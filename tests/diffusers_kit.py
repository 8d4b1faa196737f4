"""A tiny network of diffusers."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")


def tiny_unet(attention=False, **options):
    torch.manual_seed(0)
    kinds = ("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D")
    ups = ("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        **{
            "sample_size": 16,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "down_block_types": kinds,
            "up_block_types": ups,
            **options,
        }
    ).eval()
