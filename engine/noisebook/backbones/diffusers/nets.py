"""Networks of diffusers as the adapters call them, net(x, times) -> Tensor: conditions are buffers, guidance is inside."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.families.flow import Flow
from noisebook.errors import ImageError


class Conditioned(nn.Module):
    """`model` under fixed conditions: the values of `conditions` are [1, ...], or [2, ...] for guidance away from row 0.

    With two rows the output is that of row 0 plus `guidance` times the difference to row 1 (Ho and Salimans 2022), both
    from one call of twice the batch. Subclasses say how their class of diffusers is called.
    """

    def __init__(self, model: nn.Module, conditions: dict[str, Tensor], guidance: float = 1.0):
        super().__init__()
        self.model, self.guidance, self.names = model, guidance, tuple(conditions)
        self.rows = max((len(value) for value in conditions.values()), default=1)
        for name, value in conditions.items():
            self.register_buffer(name, value, persistent=False)

    def predict(self, x: Tensor, times: Tensor, **conditions: Tensor) -> Tensor:
        """x [B, C, H, W], times [B], conditions [B, ...] -> the model's output [B, C or more, H, W]."""
        raise NotImplementedError

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        conditions = {name: getattr(self, name).repeat_interleave(len(x), 0) for name in self.names}
        if self.rows == 1:
            return self.predict(x, times, **conditions)
        away, towards = self.predict(x.repeat(2, 1, 1, 1), times.repeat(2), **conditions).chunk(2)
        return away + self.guidance * (towards - away)


class UNet2D(Conditioned):
    """`UNet2DModel`, with class_labels int64 [B] or without."""

    def predict(self, x: Tensor, times: Tensor, **conditions: Tensor) -> Tensor:
        return self.model(x, times, **conditions).sample


class DiT(Conditioned):
    """`DiTTransformer2DModel` with class_labels int64 [B] (Peebles and Xie 2023)."""

    def predict(self, x: Tensor, times: Tensor, **conditions: Tensor) -> Tensor:
        return self.model(x, timestep=times, **conditions).sample


class TextUNet(Conditioned):
    """`UNet2DConditionModel`: encoder_hidden_states [B, L, D]; SDXL also text_embeds [B, P] and the size of the image.

    A model with an embedding of the guidance scale (LCM) is given it as timestep_cond [B, W], in place of a second row.
    `factor` pixels stand for one element of the state. SDXL is conditioned on sizes (Podell et al. 2023, section 2.2): that
    the image had this very size from the beginning and was not cropped.
    """

    def __init__(self, model: nn.Module, conditions: dict[str, Tensor], guidance: float = 1.0, factor: int = 8):
        super().__init__(model, conditions, guidance)
        self.factor = factor

    def predict(self, x: Tensor, times: Tensor, **conditions: Tensor) -> Tensor:
        text, added = conditions["encoder_hidden_states"], None
        if "text_embeds" in conditions:
            height, width = (n * self.factor for n in x.shape[2:])
            sizes = (height, width, 0, 0, height, width)
            ids = torch.stack([torch.full((len(x),), float(n), device=x.device) for n in sizes], 1)
            added = {"text_embeds": conditions["text_embeds"], "time_ids": ids}
        scale = conditions.get("timestep_cond")
        return self.model(x, times, timestep_cond=scale, encoder_hidden_states=text, added_cond_kwargs=added).sample


def guidance_embedding(guidance: float, width: int) -> Tensor:
    """[1, width]: sines and cosines of 1000 w, w = guidance - 1, as LCMs were trained with (Luo et al. 2023)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (guidance - 1) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()])[None], (0, width % 2))


class SD3(Conditioned):
    """`SD3Transformer2DModel`: encoder_hidden_states [B, L, D], pooled_projections [B, P] (Esser et al. 2024)."""

    def predict(self, x: Tensor, times: Tensor, **conditions: Tensor) -> Tensor:
        return self.model(hidden_states=x, timestep=times, **conditions).sample


class SD3Flow(Flow):
    """Flow whose network has positions for states of at most `side` rows and columns; `factor` pixels are one of them."""

    def __init__(self, net: nn.Module, *, side: int, factor: int, **options: Any):
        super().__init__(net, **options)
        self.side, self.factor = side, factor

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """As every backbone's. Raises ImageError where the network has no positions for such a size."""
        size = super().padded(height, width)
        if max(size) > self.side:
            most = self.side * self.factor
            raise ImageError(
                f"backbone {self.name!r} takes images of at most {most} x {most} pixels (its "
                "pos_embed_max_size): cut the image or make it smaller"
            )
        return size


class Flux(Conditioned):
    """`FluxTransformer2DModel`: 2 x 2 elements of the state are one of its vectors, their places its position ids.

    encoder_hidden_states [B, L, D], pooled_projections [B, P]. A model with an embedding of the guidance scale
    (`distilled`) is given it in place of a second row.
    """

    def __init__(self, model: nn.Module, conditions: dict[str, Tensor], guidance: float = 1.0, distilled: bool = False):
        super().__init__(model, conditions, guidance)
        self.distilled = distilled

    def predict(self, x: Tensor, times: Tensor, **conditions: Tensor) -> Tensor:
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        i = torch.arange(rows, device=x.device, dtype=torch.float32)[:, None].expand(rows, columns)
        j = torch.arange(columns, device=x.device, dtype=torch.float32).expand(rows, columns)
        places = torch.stack([torch.zeros_like(i), i, j], -1).reshape(rows * columns, 3)
        text = torch.zeros(conditions["encoder_hidden_states"].shape[1], 3, device=x.device)
        guidance = torch.full((len(x),), self.guidance, device=x.device) if self.distilled else None
        packed = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)  # [B, vectors, (channel, row, column)]
        out = self.model(hidden_states=packed, timestep=times, guidance=guidance, img_ids=places, txt_ids=text, **conditions)
        return F.pixel_shuffle(out.sample.transpose(1, 2).unflatten(2, (rows, columns)), 2)


class ScoreOfEps(nn.Module):
    """score = -eps_hat / sigma_t(t) of a VP model that predicts eps from the times 999 t, as Song et al. (2021) trained
    them.

    `net(x, 999 t [B])` -> eps_hat, as x; called with t [B] in (0, 1]; beta_min and beta_max as in `ScoreVP`.
    """

    def __init__(self, net: nn.Module, beta_min: float, beta_max: float):
        super().__init__()
        self.net, self.beta_min, self.beta_max = net, beta_min, beta_max

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t
        return -self.net(x, 999 * t) / (-torch.expm1(-b)).sqrt()[:, None, None, None]
