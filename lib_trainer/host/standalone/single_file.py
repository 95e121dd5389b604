"""A checkpoint in CompVis' or Stability's layout as diffusers' and transformers' modules.

The modules take the file's tensors as they are, in fp32: nothing is drawn at random first, and nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_trainer.families.detect import FIRST, channels_of
from lib_trainer.families.family import VAE_PREFIX, Encoder, Family
from lib_trainer.families.open_clip import InFile, places
from lib_trainer.host.vector import SINES
from lib_trainer.refusals import ModelError

Tensors = Mapping[str, torch.Tensor]
Places = Mapping[str, InFile]

BEGIN, END = 49406, 49407


def unet_section(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a .yaml says of the UNet: ldm calls it `unet_config`, sgm `network_config`."""
    section: dict[str, Any] = (params.get("unet_config") or params["network_config"])["params"]
    return section


def build_unet(tensors: Tensors, config: dict[str, Any], family: Family) -> tuple[UNet2DConditionModel, Places]:
    """The UNet, and where its tensors are in the file."""
    described = described_unet(config, family, channels_of({FIRST: tuple(tensors[FIRST].shape)}))
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(family.unet.prefix)}
    # diffusers' converter is given numbers instead of weights, and they tell where each has gone
    names = list(own)
    numbered = {name: torch.full((1,), float(index)) for index, name in enumerate(names)}
    converted = single_file.convert_ldm_unet_checkpoint(numbered, described)
    where = {name: InFile(names[int(number)]) for name, number in converted.items()}
    unet = _filled(lambda: UNet2DConditionModel.from_config(described), _read(own, where))
    return unet, where


def described_unet(config: Mapping[str, Any], family: Family, channels: int = 0) -> dict[str, Any]:
    """diffusers' description. Its own reading of .yaml files knows SDXL by the published width alone.

    `channels`: of the input, where a file's tensors say so; one that inpaints may have no .yaml.
    """
    section = unet_section(config["model"]["params"])
    filled = {"transformer_depth": 1, "context_dim": None} | section
    params = {**config["model"]["params"], "unet_config": {"params": filled}}
    described: dict[str, Any] = single_file.create_unet_diffusers_config_from_ldm({"model": {"params": params}}, {})
    described["in_channels"] = channels or section["in_channels"]
    described["attention_head_dim"] = _heads(section)  # of which diffusers says so and means their number
    if isinstance(described["layers_per_block"], list):
        described["layers_per_block"] = described["layers_per_block"][0]
    if family.sizes:
        described |= {
            "class_embed_type": None,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SINES,
            "projection_class_embeddings_input_dim": section["adm_in_channels"],
        }
    return described


def _heads(section: Mapping[str, Any]) -> int | list[int]:
    """Of an attention, at each resolution: ldm is told their number, or how many channels each has."""
    channels = section.get("num_head_channels") or -1
    if channels == -1:
        return int(section.get("num_heads") or 8)
    return [max(1, section["model_channels"] * factor // channels) for factor in section["channel_mult"]]


def build_vae(tensors: Tensors, config: dict[str, Any]) -> AutoencoderKL:
    described = single_file.create_vae_diffusers_config_from_ldm(config, {})
    own = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(VAE_PREFIX)}
    converted = single_file.convert_ldm_vae_checkpoint(own, described)
    return _filled(lambda: AutoencoderKL.from_config(described), converted)


def build_encoder(tensors: Tensors, encoder: Encoder, section: Mapping[str, Any], folder: Path) -> tuple[Any, Places]:
    """A text encoder as transformers has it, and where its tensors are in the file.

    `section` is what a .yaml says of it; what it names is looked for in `folder`.
    """
    own = [name.removeprefix(encoder.prefix) for name in tensors if name.startswith(encoder.prefix)]
    if encoder.layout == "open_clip":
        where = places(own, encoder.prefix)
    else:
        where = {name: InFile(encoder.prefix + name) for name in own}
    found = _read(tensors, where)
    described = (_of_open_clip if encoder.layout == "open_clip" else _of_transformers)(found, section, folder)
    kind = CLIPTextModelWithProjection if encoder.pooled else CLIPTextModel
    module = _filled(lambda: kind(described), found, part="text encoder")
    return module, {name: where[name] for name in module.state_dict() if name in where}


def _of_transformers(found: Tensors, section: Mapping[str, Any], folder: Path) -> CLIPTextConfig:
    """By the config.json in the folder that the .yaml names; else by the tensors, with heads of 64 channels."""
    version = section.get("version") or ""
    beside = folder / version / "config.json"  # an absolute version stays what it is
    if version and beside.is_file():
        return CLIPTextConfig.from_json_file(str(beside))
    return CLIPTextConfig(**_sizes(found))


class _Text(msgspec.Struct):
    heads: int
    quick_gelu: bool = False


class _OpenClip(msgspec.Struct):
    """What is read of open_clip's description of a model."""

    text_cfg: _Text
    quick_gelu: bool = False


def _of_open_clip(found: Tensors, section: Mapping[str, Any], folder: Path) -> CLIPTextConfig:
    """By open_clip's own description of the `arch` that the .yaml names, where one lies beside the checkpoint; else by
    the tensors, with heads of 64 channels, as ViT-H and bigG have them."""
    sizes = _sizes(found) | {"hidden_act": "gelu"}
    arch = section.get("arch") or ""
    beside = folder / f"{arch}.json"
    if arch and beside.is_file():
        try:
            described = msgspec.json.decode(beside.read_bytes(), type=_OpenClip)
        except (OSError, msgspec.DecodeError) as error:
            raise ModelError("checkpoint.yaml_unreadable", path=beside, reason=error) from error
        sizes["num_attention_heads"] = described.text_cfg.heads
        if described.quick_gelu or described.text_cfg.quick_gelu:
            sizes["hidden_act"] = "quick_gelu"
    return CLIPTextConfig(**sizes)


def _sizes(found: Tensors) -> dict[str, Any]:
    """What the tensors tell of a CLIP text model in transformers' layout."""
    vocabulary, hidden = found["text_model.embeddings.token_embedding.weight"].shape
    layers = {name.split(".")[3] for name in found if name.startswith("text_model.encoder.layers.")}
    projection = found.get("text_projection.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "intermediate_size": found["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": max(1, hidden // 64),
        "max_position_embeddings": found["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": hidden if projection is None else projection.shape[0],
        "bos_token_id": BEGIN,
        "eos_token_id": END,
    }


def encoder_sections(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a .yaml says of each text encoder, in their order."""
    if params.get("conditioner_config"):
        models = params["conditioner_config"]["params"]["emb_models"]
        return [model.get("params") or {} for model in models if model.get("input_key") == "txt"]
    return [(params.get("cond_stage_config") or {}).get("params") or {}]


def _read(tensors: Tensors, where: Places) -> dict[str, torch.Tensor]:
    """Each in fp32 with a memory of its own, as layers are held."""
    found = {}
    for name, place in where.items():
        own = place.read(tensors[place.name])
        if own.is_floating_point():
            own = own.float()
        found[name] = (
            own.clone(memory_format=torch.contiguous_format) if place.third is not None or place.turned else own
        )
    return found


def _filled(make: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor], part: str = "") -> nn.Module:
    """A module that holds the tensors themselves. What it does not know is left out.

    Raises `KeyError` and `RuntimeError` for what is missing or of another shape.
    """
    with torch.device("meta"):
        module = make()
    wanted = module.state_dict().keys()
    missing: Sequence[str] = sorted(wanted - tensors.keys() - {POSITIONS})
    if part and missing:
        raise KeyError(f"{part}: {missing[0]} is missing")
    known = tensors if not part else {name: tensors[name] for name in wanted if name in tensors and name != POSITIONS}
    module.load_state_dict(known, strict=not part, assign=True)
    for owner in module.modules():
        positions = owner._buffers.get("position_ids")
        if positions is not None:  # 0, 1, 2 …, whatever a file says
            owner._buffers["position_ids"] = torch.arange(positions.shape[-1])[None]
    return module.eval()


POSITIONS = "text_model.embeddings.position_ids"
