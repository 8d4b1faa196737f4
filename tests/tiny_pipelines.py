"""Tiny random pipelines in diffusers' layout, one of every kind that is read, saved when first asked for."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 12  # tokens of the CLIP encoders


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- tiny parts ---------------------------------------------------------------------------------------------------------
def clip_tokenizer():
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in LETTERS:
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)


def clip(width, projection=None):
    config = transformers.CLIPTextConfig(
        vocab_size=60,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=projection or 8,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config).eval()


def t5(width):
    vocab = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [(piece, -1.0) for piece in "▁" + LETTERS]
    tokenizer = transformers.T5TokenizerFast(vocab=vocab, extra_ids=0)
    config = transformers.T5Config(vocab_size=32, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return tokenizer, transformers.T5EncoderModel(config).eval()


def autoencoder(channels, **options):
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        latent_channels=channels,
        **options,
    ).eval()


def text_unet(**options):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    ).eval()


def pixel_unet(**options):
    return diffusers.UNet2DModel(
        **{
            "sample_size": 16,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D",) * 2,
            "up_block_types": ("UpBlock2D",) * 2,
            **options,
        }
    ).eval()


def ddim(**options):
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    return diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, **options)


# ---- tiny pipelines -----------------------------------------------------------------------------------------------------
def build_sd(prediction="epsilon"):
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(4),
        text_encoder=clip(8),
        tokenizer=clip_tokenizer(),
        unet=text_unet(cross_attention_dim=8),
        scheduler=ddim(prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_lcm():
    """LCM: the UNet has an embedding of the guidance scale; the pipeline is a class of its own."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.LatentConsistencyModelPipeline(
        vae=autoencoder(4),
        text_encoder=clip(8),
        tokenizer=clip_tokenizer(),
        unet=text_unet(cross_attention_dim=8, time_cond_proj_dim=9),
        scheduler=diffusers.LCMScheduler(**betas, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sd_turbo():
    """SD-Turbo: Stable Diffusion 2.1's layout, and Euler's scheduler that stops at the ends of even pieces."""
    pipe = build_sd()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="trailing"
    )
    return pipe


def build_sdxl(**options):
    unet = text_unet(
        cross_attention_dim=24,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
        **options,
    )
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=clip(8),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(16, 12),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def build_sdxl_turbo():
    """SDXL-Turbo: SDXL's layout with the ancestral Euler scheduler."""
    pipe = build_sdxl()
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="trailing"
    )
    return pipe


def build_sdxl_lcm():
    """LCM of SDXL: its text, and the embedding of the guidance scale."""
    pipe = build_sdxl(time_cond_proj_dim=8)
    pipe.scheduler = diffusers.LCMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, original_inference_steps=50
    )
    return pipe


def build_dit():
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=4,
    ).eval()
    return diffusers.DiTPipeline(transformer, autoencoder(4), diffusers.DDIMScheduler(clip_sample=False), {0: "tench"})


def build_sd3(**options):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=12,
        **options,
    ).eval()
    tokenizer_3, text_encoder_3 = t5(32)
    return diffusers.StableDiffusion3Pipeline(
        transformer,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder(4, scaling_factor=1.5305, shift_factor=0.0609),
        clip(8, 8),
        clip_tokenizer(),
        clip(16, 12),
        clip_tokenizer(),
        text_encoder_3,
        tokenizer_3,
    )


def build_sd35():
    """SD 3.5 medium: normalised queries and keys, a second attention of the picture in some blocks, an autoencoder without
    the convolutions around its codes."""
    pipe = build_sd3(qk_norm="rms_norm", dual_attention_layers=(0,))
    codes = {"use_quant_conv": False, "use_post_quant_conv": False}
    pipe.vae = autoencoder(4, scaling_factor=1.5305, shift_factor=0.0609, **codes)
    return pipe


def build_flux(distilled=True):
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 2, 2),
    ).eval()
    tokenizer_2, text_encoder_2 = t5(16)
    return diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        autoencoder(4, scaling_factor=0.3611, shift_factor=0.1159),
        clip(8),
        clip_tokenizer(),
        text_encoder_2,
        tokenizer_2,
        transformer,
    )


def build_consistency():
    unet = pixel_unet(num_class_embeds=10, resnet_time_scale_shift="scale_shift")
    return diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler())


def build_ve():
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.8)
    return diffusers.ScoreSdeVePipeline(pixel_unet(time_embedding_type="fourier", center_input_sample=True), scheduler)


BUILDERS = {
    "sd": build_sd,
    "sd v": lambda: build_sd("v_prediction"),
    "sd turbo": build_sd_turbo,
    "lcm": build_lcm,
    "sdxl": build_sdxl,
    "sdxl turbo": build_sdxl_turbo,
    "sdxl lcm": build_sdxl_lcm,
    "dit": build_dit,
    "sd3": build_sd3,
    "sd3.5": build_sd35,
    "flux": build_flux,
    "flux schnell": lambda: build_flux(distilled=False),
    "consistency": build_consistency,
    "ve": build_ve,
}
OPTIONS = {"consistency": {"label": 3}}  # what a folder cannot be loaded without


def saver(folder: Path) -> Callable[[str], tuple]:
    """name -> (path in `folder`, the pipeline that was saved there); each is made once."""

    @cache
    def get(name):
        torch.manual_seed(0)
        pipe, path = BUILDERS[name](), folder / name
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():  # biases and zero-initialised layers too, so that every condition tells
            for p in part.parameters() if isinstance(part, torch.nn.Module) else ():
                p.data.add_(0.05 * torch.randn_like(p))
        pipe.save_pretrained(path)
        return path, pipe

    return get
