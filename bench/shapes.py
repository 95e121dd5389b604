"""Published architectures, as arguments of ldm's, transformers' and diffusers' classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SD1_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": False,
    "legacy": False,
}
VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
BIG_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
"""Without the layer behind the one that is read, as diffusers has it."""
BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}


def xl_unet(channels: Sequence[int], heads: Sequence[int], depth: int, context: int, pooled: int) -> dict[str, Any]:
    """SDXL's (arXiv:2307.01952): no attention at the finest resolution, 2 and `depth` layers at the others."""
    return {
        "block_out_channels": tuple(channels),
        "attention_head_dim": tuple(heads),
        "transformer_layers_per_block": (1, 2, depth),
        "cross_attention_dim": context,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": pooled + 6 * 256,
    }


DIFFUSERS_UNETS: dict[str, dict[str, Any]] = {
    "SD 1.x": {"cross_attention_dim": 768},
    "SD 2.x": {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
    "SDXL": xl_unet((320, 640, 1280), (5, 10, 20), 10, 768 + 1280, 1280),
}
"""By the family's word, where they differ from what UNet2DConditionModel is without arguments."""
