"""Stable Diffusion 2.x: SD 1.x's UNet with heads of 64 channels and linear projections, on OpenCLIP's ViT-H/14.

The 768-pixel models predict v, the 512-pixel ones the noise: their files do not say which they are.
"""

from __future__ import annotations

from lib_trainer.families.family import Family, Unet, open_clip, published

CONFIG = published(
    0.18215, attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], num_head_channels=64,
    use_linear_in_transformer=True, transformer_depth=1, context_dim=1024,
)  # fmt: skip
"""The published architecture in ldm's terms."""

SD2 = Family(
    word="SD 2.x", model="SD 2.1", card="SD2", version="sd_v2", v_version="sd_v2_v",
    v_architecture="stable-diffusion-v2-768-v", architecture="stable-diffusion-v2-512",
    unet=Unet(depths=(1, 1, 1, 0), context=1024, named="diffusers", linear=True),
    encoders=(
        open_clip(
            "te1", "cond_stage_model.", "lora_te", "emb_params", width=1024, layers=24, adapted=23, final_norm=True
        ),
    ),
    latent_scale=0.18215, trainable=True, v2=True, v_side=768, memory="sd2", config=CONFIG,
)  # fmt: skip
