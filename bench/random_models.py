"""Models of random weights for the benches of a training step: published architectures, and miniatures of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bench.shapes import DIFFUSERS_UNETS, xl_unet
from lib_trainer.families.known import DEFAULT
from lib_trainer.families.sdxl import SDXL
from lib_trainer.host.standalone.checkpoint import Components
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.ports import NoiseSchedule

FamilyName = Literal["sd1", "sdxl"]
SIZES = {"mini": 64, "full": 256}
"""Pixels of a side on the CPU, where nothing else is asked for."""


@dataclass(frozen=True)
class _Shape:
    """Arguments of diffusers' UNet and of transformers' text encoders."""

    unet: dict[str, Any]
    texts: tuple[dict[str, Any], ...]


def _text(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": heads} | more


SHAPES: dict[tuple[str, str], _Shape] = {
    ("sd1", "mini"): _Shape(
        {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 4}, (_text(32, 3, 4),)
    ),
    ("sd1", "full"): _Shape(
        {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
        (_text(768, 12, 12),),
    ),
    ("sdxl", "mini"): _Shape(
        xl_unet((32, 32, 64), (2, 2, 4), 2, 32 + 48, 40),
        (_text(32, 3, 4), _text(48, 3, 4, projection_dim=40, hidden_act="gelu")),
    ),
    ("sdxl", "full"): _Shape(
        DIFFUSERS_UNETS["SDXL"],
        (_text(768, 12, 12), _text(1280, 32, 20, projection_dim=1280, hidden_act="gelu")),
    ),
}


def build_model(
    size: str,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    family: FamilyName = "sd1",
    dtype: torch.dtype = torch.float32,
) -> DiffusersModel:
    """A family's published architecture, or a miniature of it, with random weights, made on the device as they stay."""
    torch.manual_seed(0)
    shape, described = SHAPES[family, size], SDXL if family == "sdxl" else DEFAULT
    with device, _made_in(dtype):
        unet = UNet2DConditionModel(**shape.unet).eval()
        vae = AutoencoderKL().eval()
        kinds = [CLIPTextModelWithProjection if one.pooled else CLIPTextModel for one in described.encoders]
        texts = tuple(kind(CLIPTextConfig(**one)).eval() for kind, one in zip(kinds, shape.texts, strict=True))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = NoiseSchedule(torch.cumprod(1 - betas, 0), "epsilon")
    return DiffusersModel(Components(unet, vae, texts, load_tokenizer(), schedule, described), device)


@contextlib.contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
