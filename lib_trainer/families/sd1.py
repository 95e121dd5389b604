"""Stable Diffusion 1.x (Rombach et al. 2022, arXiv:2112.10752) on OpenAI's CLIP ViT-L/14."""

from __future__ import annotations

from lib_trainer.families.family import Family, Unet, clip_l, published

CONFIG = published(
    0.18215, attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], num_heads=8, transformer_depth=1,
    context_dim=768,
)  # fmt: skip
"""The published architecture in ldm's terms."""

SD1 = Family(
    word="SD 1.x", model="SD 1.5", card="SD1", version="sd_v1", v_version="sd_v1_v", architecture="stable-diffusion-v1",
    unet=Unet(depths=(1, 1, 1, 0), context=768, named="diffusers"),
    encoders=(clip_l("te1", "cond_stage_model.", "lora_te", "emb_params", output=12, final_norm=True),),
    latent_scale=0.18215, clip_skip=True, trainable=True, memory="sd1", config=CONFIG,
)  # fmt: skip
