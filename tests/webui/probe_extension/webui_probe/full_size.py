"""Checkpoints of the published shapes whose weights are random numbers: what a job takes does not hang on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from modules import devices, sd_models, sd_models_config
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sgm.modules.diffusionmodules.openaimodel import UNetModel as XlUnet
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

CHECKS = ("write_full_size",)
CONFIGS = {"sd1": sd_models_config.config_default, "sdxl": sd_models_config.config_sdxl}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408,
}  # fmt: skip


def write_full_size(family: str, clip_folder: str) -> str:
    """The file's name in the menu. `clip_folder` holds CLIP's tokenizer, and is given CLIP-L's description."""
    whole = CLIP_L | {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    Path(clip_folder, "config.json").write_text(json.dumps(whole))
    config = OmegaConf.load(CONFIGS[family])
    with torch.device("meta"):
        parts = _xl(config) if family == "sdxl" else _sd1(config)
    _read_clip_in(config, clip_folder)
    tensors = {
        f"{prefix}{name}": _random(name, one)
        for prefix, part in parts.items()
        for name, one in part.state_dict().items()
    }
    path = Path(sd_models.model_path, f"full-{family}.safetensors")
    OmegaConf.save(config, path.with_suffix(".yaml"))
    save_file(tensors, str(path))
    return path.name


def _sd1(config: Any) -> dict[str, nn.Module]:
    params = config.model.params
    text = nn.ModuleDict({"transformer": CLIPTextModel(CLIPTextConfig(**CLIP_L))})
    return {
        "model.diffusion_model.": UNetModel(**params.unet_config.params),
        "first_stage_model.": _vae(params.first_stage_config.params.ddconfig),
        "cond_stage_model.": text,
    }


def _xl(config: Any) -> dict[str, nn.Module]:
    params = config.model.params
    unet = OmegaConf.to_container(params.network_config.params)
    second = open_clip.CLIP(**open_clip.get_model_config("ViT-bigG-14"))
    del second.visual
    return {
        "model.diffusion_model.": XlUnet(**unet),
        "first_stage_model.": _vae(params.first_stage_config.params.ddconfig),
        "conditioner.embedders.0.": nn.ModuleDict({"transformer": CLIPTextModel(CLIPTextConfig(**CLIP_L))}),
        "conditioner.embedders.1.": nn.ModuleDict({"model": second}),
    }


def _vae(shape: Any) -> nn.Module:
    shape = dict(shape)
    quant = {"quant_conv": nn.Conv2d(8, 8, 1), "post_quant_conv": nn.Conv2d(4, 4, 1)}
    return nn.ModuleDict({"encoder": Encoder(**shape), "decoder": Decoder(**shape), **quant})


def _read_clip_in(config: Any, folder: str) -> None:
    """Give CLIP's embedder a folder instead of a name on the hub."""
    for embedder in [config.model.params.get("cond_stage_config"), *_embedders(config)]:
        if embedder is not None and embedder.target.endswith(".FrozenCLIPEmbedder"):
            embedder.params = {**embedder.get("params", {}), "version": folder}


def _embedders(config: Any) -> list[Any]:
    conditioner = config.model.params.get("conditioner_config")
    return [] if conditioner is None else list(conditioner.params.emb_models)


def _random(name: str, like: torch.Tensor) -> torch.Tensor:
    """Norms as they begin, and small numbers elsewhere, so that nothing overflows in half precision."""
    if not like.is_floating_point():
        return torch.arange(like.numel()).reshape(like.shape)
    if like.dim() < 2:
        fill = 1.0 if name.endswith("weight") else 0.0
        return torch.full(like.shape, fill, dtype=torch.float16)
    made = torch.randn(like.shape, device=devices.device) * min(0.02, like[0].numel() ** -0.5)
    return made.half().cpu()
