"""The other families' miniatures: what each is made of. Their UNets have the real ones' topology, far narrower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .common import CLIP_CONFIG, UNET_CONFIG

SDXL_SCALING_FACTOR = 0.13025
"""SDXL's latent scale."""

_LAYERS = {"num_hidden_layers": 4}
# The layer behind the penultimate output is in the file and has nothing to say to the UNet, as in the real ones.
CLIP_L: dict[str, Any] = {**CLIP_CONFIG, **_LAYERS}
OPEN_CLIP: dict[str, Any] = {**CLIP_CONFIG, **_LAYERS, "hidden_act": "gelu", "pad_token_id": 0}
CLIP_G: dict[str, Any] = {
    **OPEN_CLIP,
    # Not as wide as the first encoder: what takes one for the other is found out by the shapes.
    "hidden_size": 24,
    "intermediate_size": 96,
    "projection_dim": 24,
    "num_attention_heads": 3,
}
SD2_UNET: dict[str, Any] = {**UNET_CONFIG, "use_linear_projection": True, "attention_head_dim": (4, 4, 8, 8)}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": CLIP_L["hidden_size"] + CLIP_G["hidden_size"],
    # diffusers' name is historical: the number of heads of each level, here of 8 channels each.
    "attention_head_dim": (4, 4, 8),
    "use_linear_projection": True,
    "norm_num_groups": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": CLIP_G["projection_dim"] + 6 * 256,
}


@dataclass(frozen=True)
class Encoder:
    """One text encoder: transformers' configuration, and how the UNet reads it."""

    config: Mapping[str, Any]
    pad: int
    """Token id behind the end mark: 49407 for OpenAI's CLIP, 0 for open_clip."""
    final_norm: bool
    """Whether the penultimate hidden state goes through the final layer norm (SD2) or not (SDXL)."""
    open_clip: bool
    prefix: str
    """Of its keys in the single file."""
    arch: str = ""
    """open_clip's name of it."""


@dataclass(frozen=True)
class Recipe:
    """What a family's miniature is and how it is trained."""

    name: str
    unet: Mapping[str, Any]
    encoders: tuple[Encoder, ...]
    scaling_factor: float
    prediction: str = "epsilon"
    zero_terminal: bool = False
    zeroed_captions: bool = False
    """Emptied captions are zeros (SDXL), not the encoding of an empty text."""
    markers: tuple[str, ...] = field(default=())
    """Empty tensors in the file that say what it predicts."""

    @property
    def sizes(self) -> bool:
        """True if the UNet is told the picture's size and crop."""
        return "projection_class_embeddings_input_dim" in self.unet


_SDXL_ENCODERS = (
    Encoder(CLIP_L, 49407, False, False, "conditioner.embedders.0.transformer."),
    Encoder(CLIP_G, 0, False, True, "conditioner.embedders.1.model.", "mini-clip-g"),
)
SDXL = Recipe("sdxl", SDXL_UNET, _SDXL_ENCODERS, SDXL_SCALING_FACTOR, zeroed_captions=True)
SDXL_V = Recipe(
    "sdxl-v", SDXL_UNET, _SDXL_ENCODERS, SDXL_SCALING_FACTOR, "v_prediction", True, True, ("v_pred", "ztsnr")
)
SD2_V = Recipe(
    "sd2-v",
    SD2_UNET,
    (Encoder(OPEN_CLIP, 0, True, True, "cond_stage_model.model.", "mini-clip-h"),),
    0.18215,
    "v_prediction",
)
RECIPES = {recipe.name: recipe for recipe in (SDXL, SDXL_V, SD2_V)}
