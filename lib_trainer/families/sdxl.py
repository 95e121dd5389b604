"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): two text encoders, and sizes that the UNet is told."""

from __future__ import annotations

from lib_trainer.families.family import Family, Unet, clip_l, open_clip, published

CONFIG = published(
    0.13025, adm_in_channels=2816, num_classes="sequential", attention_resolutions=[4, 2], channel_mult=[1, 2, 4],
    num_head_channels=64, use_linear_in_transformer=True, transformer_depth=[1, 2, 10], context_dim=2048,
)  # fmt: skip
"""The published architecture in ldm's terms. The first depth is read by nobody: there is no attention there."""

SDXL = Family(
    word="SDXL", model="SDXL 1.0", card="SDXL", version="sdxl_base_v1-0", architecture="stable-diffusion-xl-v1-base",
    unet=Unet(depths=(0, 2, 10), context=2048, named="ldm", vector=2816, linear=True),
    encoders=(
        clip_l("te1", "conditioner.embedders.0.", "lora_te1", "clip_l", output=11, final_norm=False),
        open_clip(
            "te2", "conditioner.embedders.1.", "lora_te2", "clip_g", width=1280, layers=32, adapted=32,
            final_norm=False, pooled=1280,
        ),
    ),
    latent_scale=0.13025, trainable=True, zero_empty=True, sizes=True, hypernetworks=False, side=1024, smallest=768,
    memory="sdxl", config=CONFIG,
)  # fmt: skip
"""2816 numbers: the pooled vector's 1280, and six sizes as 256 sines each."""
