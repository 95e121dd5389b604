"""Reading a checkpoint into diffusers' modules: a single file in ldm's layout, or a diffusers folder.

A single file is built from the `.yaml` of the same name beside it, if there is one, as the WebUI builds it; without one
it is taken for the published model of its family. The text encoder of a `.yaml` is described by the folder its
`cond_stage_config.params.version` names (relative to the file), as transformers' `config.json`. Nothing is
fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single_file
from omegaconf import OmegaConf
from transformers import CLIPTextConfig, CLIPTextModel

from lib_trainer.families.detect import folder_model, model_of
from lib_trainer.families.family import VAE_PREFIX, Family, Part
from lib_trainer.families.known import DEFAULT, checked
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import found
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.networks.formats.checkpoint_file import read_state_dict
from lib_trainer.networks.formats.description import predicted_by
from lib_trainer.ports import NoiseSchedule
from lib_trainer.refusals import ModelError, Sentence

UNET = DEFAULT.unet.prefix


@dataclass(frozen=True)
class Components:
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Any
    schedule: NoiseSchedule
    family: Family = DEFAULT
    file_names: Mapping[Part, Mapping[str, str]] = field(default_factory=dict)
    """{part: {name in the module: name in the single file}}; empty for a diffusers folder."""
    said: Predicts | None = None
    """What it predicts, and why, where it came from a file or folder."""


def load_checkpoint(path: Path) -> Components:
    """Read a checkpoint, in fp32, on the CPU. Raises `ModelError` naming the file and what is wrong with it."""
    path = found(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise ModelError("checkpoint.missing", path=path)
    tensors = read_state_dict(path)
    family = _family(path, tensors)
    config, said = _config_beside(path, family), predicted_by(path, family, tensors)
    try:
        built = _build(tensors, config, path.parent, family)
    except Exception as error:  # converters trip over missing pieces in many ways
        if path.with_suffix(".yaml").is_file():
            raise ModelError("checkpoint.misfit_of_yaml", path=path, reason=error) from error
        raise ModelError("checkpoint.misfit", path=path, model=family.model, reason=error) from error
    schedule = NoiseSchedule(built.schedule.alphas_cumprod, said.prediction, said.zero_terminal)
    return replace(built, schedule=schedule, said=said)


def _family(path: Path, tensors: dict[str, torch.Tensor]) -> Family:
    """What a single file is of. Raises `ModelError` where that cannot be trained."""
    model = model_of(_shapes(tensors))
    if model is None:
        if any(name.startswith("model_ema.") for name in tensors):
            raise ModelError("checkpoint.average_only", path=path)
        if any(name.startswith(("down_blocks.", "unet.down_blocks.")) for name in tensors):
            raise ModelError("checkpoint.diffusers_unet", path=path)
        raise ModelError("checkpoint.without_unet", path=path, prefix=UNET[:-1])
    family = checked(model, path)
    first = tensors.get(f"{family.unet.prefix}input_blocks.0.0.weight")
    if first is None or first.ndim != 4:
        raise ModelError("checkpoint.other_layout", path=path)
    for prefix, what in ((VAE_PREFIX, "VAE"), (family.encoders[0].prefix, Sentence("part.text_encoder"))):
        if not any(name.startswith(prefix) for name in tensors):
            raise ModelError("checkpoint.without_part", path=path, part=what, prefix=prefix[:-1])
    return family


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _config_beside(path: Path, family: Family) -> dict[str, Any]:
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return dict(family.config or {})
    try:
        config = OmegaConf.to_container(OmegaConf.load(beside), resolve=True)
    except Exception as error:  # OmegaConf passes on whatever its parsers raise
        raise ModelError("checkpoint.yaml_unreadable", path=beside, reason=error) from error
    if not isinstance(config, dict):
        raise ModelError("checkpoint.yaml_empty", path=beside)
    return config


def _build(tensors: dict[str, torch.Tensor], config: dict[str, Any], folder: Path, family: Family) -> Components:
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    params = config["model"]["params"]
    unet_config = single_file.create_unet_diffusers_config_from_ldm(config, tensors)
    unet_config["attention_head_dim"] = params["unet_config"]["params"].get("num_heads", 8)
    unet = UNet2DConditionModel.from_config(unet_config)
    unet.load_state_dict(single_file.convert_ldm_unet_checkpoint(tensors, unet.config))
    vae = AutoencoderKL.from_config(single_file.create_vae_diffusers_config_from_ldm(config, tensors))
    vae.load_state_dict(single_file.convert_ldm_vae_checkpoint(tensors, vae.config))
    text = single_file.convert_ldm_clip_checkpoint(tensors)
    text_encoder = CLIPTextModel(_text_config(text, params, folder))
    wanted = text_encoder.state_dict().keys()
    text_encoder.load_state_dict({name: tensor for name, tensor in text.items() if name in wanted}, strict=False)
    missing = sorted(wanted - text.keys() - {"text_model.embeddings.position_ids"})
    if missing:
        raise KeyError(f"text encoder: {missing[0]} is missing")
    betas = _scaled_linear(params["linear_start"], params["linear_end"], params["timesteps"])
    schedule = NoiseSchedule(torch.cumprod(1 - betas, 0), family.prediction)
    own = family.encoders[0]
    names: dict[Part, Mapping[str, str]] = {
        "unet": _unet_file_names(tensors, unet.config),
        own.part: {name: own.prefix + name for name in text},
    }
    return Components(unet.eval(), vae.eval(), text_encoder.eval(), load_tokenizer(), schedule, family, names)


def _unet_file_names(tensors: dict[str, torch.Tensor], config: Any) -> dict[str, str]:
    """diffusers' name → ldm's: its converter is given numbers instead of weights, and they tell where each has gone."""
    ldm = [name for name in tensors if name.startswith(UNET)]
    numbered = {name: torch.full((1,), float(index)) for index, name in enumerate(ldm)}
    converted = single_file.convert_ldm_unet_checkpoint(numbered, config)
    return {name: ldm[int(number)] for name, number in converted.items()}


def _text_config(text: dict[str, torch.Tensor], params: dict[str, Any], folder: Path) -> CLIPTextConfig:
    version = params.get("cond_stage_config", {}).get("params", {}).get("version", "")
    beside = folder / version / "config.json"  # an absolute version stays what it is
    if version and beside.is_file():
        return CLIPTextConfig.from_json_file(str(beside))
    hidden = text["text_model.embeddings.token_embedding.weight"].shape[1]
    layers = {name.split(".")[3] for name in text if name.startswith("text_model.encoder.layers.")}
    inner = text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    return CLIPTextConfig(
        hidden_size=hidden, num_hidden_layers=len(layers), intermediate_size=inner, num_attention_heads=hidden // 64
    )


def _scaled_linear(start: float, end: float, steps: int) -> torch.Tensor:
    """Betas whose square roots are evenly spaced, float64 (arXiv:2112.10752's code)."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _load_folder(folder: Path) -> Components:
    if not (folder / "model_index.json").is_file():
        raise ModelError("folder_model.not_one", path=folder)
    family = _folder_family(folder)
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError("folder_model.unreadable", path=folder, reason=error) from error
    config = scheduler.config
    betas = _scaled_linear(config.beta_start, config.beta_end, config.num_train_timesteps)
    said = predicted_by(folder, family)
    schedule = NoiseSchedule(torch.cumprod(1 - betas, 0), said.prediction, said.zero_terminal)
    parts = unet.float().eval(), vae.float().eval(), text_encoder.float().eval()
    return Components(*parts, load_tokenizer(), schedule, family, said=said)


def _folder_family(folder: Path) -> Family:
    """By the UNet's own description. Raises `ModelError` where it cannot be trained."""
    try:
        described = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # reading the UNet says the rest
        described = {}
    found = folder_model(described, several=(folder / "text_encoder_2").is_dir())
    return checked(found, folder)
