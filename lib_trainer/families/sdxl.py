"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): two text encoders, and sizes that the UNet is told."""

from __future__ import annotations

from lib_trainer.families.family import Encoder, Family, Unet, published

CONFIG = published(
    0.13025,
    adm_in_channels=2816,
    num_classes="sequential",
    attention_resolutions=[4, 2],
    channel_mult=[1, 2, 4],
    num_head_channels=64,
    use_linear_in_transformer=True,
    transformer_depth=[1, 2, 10],
    context_dim=2048,
)
"""The published architecture in ldm's terms. The first depth is read by nobody: there is no attention there."""

SDXL = Family(
    word="SDXL",
    model="SDXL 1.0",
    card="SDXL",
    version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base",
    unet=Unet(depths=(0, 2, 10), context=2048, named="ldm", vector=2816, linear=True),
    encoders=(
        Encoder(
            part="te1",
            root="conditioner.embedders.0.",
            prefix="conditioner.embedders.0.transformer.",
            layout="transformers",
            key="lora_te1",
            rows="clip_l",
            width=768,
            layers=12,
            output=11,
            adapted=12,
            final_norm=False,
        ),
        Encoder(
            part="te2",
            root="conditioner.embedders.1.",
            prefix="conditioner.embedders.1.model.",
            layout="open_clip",
            key="lora_te2",
            rows="clip_g",
            width=1280,
            layers=32,
            output=31,
            adapted=32,
            final_norm=False,
            padding=0,
            pooled=1280,
        ),
    ),
    latent_scale=0.13025,
    trainable=True,
    zero_empty=True,
    sizes=True,
    hypernetworks=False,
    side=1024,
    smallest=768,
    memory="sdxl",
    config=CONFIG,
)
"""2816 numbers: the pooled vector's 1280, and six sizes as 256 sines each."""
