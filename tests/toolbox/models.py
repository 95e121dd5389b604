"""Tiny files with the names of real ones: SD 1.x, SD 2.x and SDXL checkpoints, diffusers folders, VAEs."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_trainer.families.family import Family
from lib_trainer.families.known import FAMILIES

SD1, SD2, SDXL = FAMILIES
Tensors = dict[str, torch.Tensor]


def unet_of(family: Family) -> UNet2DConditionModel:
    """The family's blocks, 8 channels wide."""
    depths = family.unet.depths
    levels = len(depths)
    cross = [("CrossAttnDownBlock2D" if depth else "DownBlock2D") for depth in depths]
    up = [("CrossAttnUpBlock2D" if depth else "UpBlock2D") for depth in reversed(depths)]
    more: dict[str, Any] = {"transformer_layers_per_block": tuple(min(depth, 2) or 1 for depth in depths)}
    if family.unet.vector:
        more |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 16 + 24,
        }
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,) * levels, down_block_types=cross, up_block_types=up, norm_num_groups=4,
        cross_attention_dim=family.unet.context, attention_head_dim=4,
        use_linear_projection=family.v2 or bool(family.unet.vector), **more,
    )  # fmt: skip


def vae_of() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), layers_per_block=2, norm_num_groups=2, latent_channels=4,
    )  # fmt: skip


def text_of(projected: bool, layers: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        projection_dim=16,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def parts_of(family: Family, seed: int = 0) -> dict[str, Any]:
    """{folder: module} of a diffusers folder."""
    return _parts(FAMILIES.index(family), seed)


@functools.lru_cache
def _parts(number_of_family: int, seed: int) -> dict[str, Any]:
    family = FAMILIES[number_of_family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {"unet": unet_of(family), "vae": vae_of()}
        for number, encoder in enumerate(family.encoders):
            name = f"text_encoder_{number + 1}" if number else "text_encoder"
            parts[name] = text_of(bool(encoder.pooled), 2)
        for module in parts.values():
            for tensor in module.parameters():
                tensor.data = torch.randn(tensor.shape) * 0.3
    return parts


def save_folder(folder: Path, family: Family, *, dtype: torch.dtype = torch.float32, v: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    for name, module in parts_of(family).items():
        place = folder / name
        place.mkdir()
        file = "model.safetensors" if name.startswith("text") else "diffusion_pytorch_model.safetensors"
        state = {key: one.detach().to(dtype).contiguous() for key, one in module.state_dict().items()}
        save_file(state, place / file)
        (place / "config.json").write_text(json.dumps({"use_linear_projection": family.v2, "in_channels": 4}))
    (folder / "scheduler").mkdir()
    told = {"prediction_type": "v_prediction" if v else "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    return folder


def checkpoint(family: Family, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """A checkpoint in CompVis' names, made of the folder's parts; test_facts holds it to diffusers' own tables."""
    return dict(_checkpoint(FAMILIES.index(family), seed, dtype))


@functools.lru_cache
def _checkpoint(number_of_family: int, seed: int, dtype: torch.dtype) -> Tensors:
    family = FAMILIES[number_of_family]
    from lib_trainer.networks.formats.mapped import Stored
    from lib_trainer.toolbox.layouts import checkpoint_text, ldm_unet, ldm_vae
    from lib_trainer.toolbox.source import Source

    def held(module: Any) -> dict[str, Stored]:
        return {k: Stored(tuple(v.shape), v.dtype, v.detach) for k, v in module.state_dict().items()}

    parts = parts_of(family, seed)
    found = {f"{family.unet.prefix}{k}": one for k, one in ldm_unet(held(parts["unet"]), family.unet).items()}
    found |= {f"first_stage_model.{k}": one for k, one in ldm_vae(held(parts["vae"])).items()}
    for number, encoder in enumerate(family.encoders):
        module = parts[f"text_encoder_{number + 1}" if number else "text_encoder"]
        found |= {f"{encoder.prefix}{k}": one for k, one in checkpoint_text(held(module), encoder).items()}
    source = Source(Path(), found)
    made = {name: source.raw(name).to(dtype).contiguous() for name in found}
    if family.encoders[0].layout == "transformers":
        made[f"{family.encoders[0].prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return made


SOME = (
    r"model\.diffusion_model\.(time_embed\.0|label_emb\.0\.0|input_blocks\.0\.0|input_blocks\.1\.0\.in_layers\.0|"
    r"input_blocks\.1\.1\.transformer_blocks\.0\.attn1|middle_block\.0\.in_layers|middle_block\.1\.norm|out\.0|"
    r"output_blocks\.(0|8|11)\.0\.in_layers)\.|first_stage_model\.(encoder|decoder)\.conv_in|"
    r".*(layers\.0\.mlp|resblocks\.0\.mlp|position_ids|token_embedding)"
)


def some(family: Family, seed: int = 0) -> Tensors:
    """Of every part and several blocks a few tensors, so that tests take no time."""
    return {name: one for name, one in checkpoint(family, seed).items() if re.match(SOME, name)}


def save(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file({name: one.contiguous() for name, one in tensors.items()}, path, metadata or None)
    return path
