"""Reading a checkpoint into diffusers' modules: a single file in ldm's layout, or a diffusers folder.

A single file is built from the `.yaml` of the same name beside it, if there is one, as the WebUI builds it; without one
it is taken for the published model of its family. A text encoder in transformers' layout is described by the folder
that `version` of its section in the `.yaml` names, as transformers' `config.json`; one in open_clip's by
open_clip's description of its `arch`, `<arch>.json`. Both are looked for beside the file. Nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from omegaconf import OmegaConf
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lib_trainer.families.detect import folder_model
from lib_trainer.families.family import INPAINTING, Encoder, Family, Part, Stranger
from lib_trainer.families.known import DEFAULT, checked
from lib_trainer.families.open_clip import InFile
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import found
from lib_trainer.host.standalone.single_file import build_encoder, build_unet, build_vae, encoder_sections
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.networks.formats.checkpoint_file import read_state_dict, whole_family_of
from lib_trainer.networks.formats.description import predicted_by
from lib_trainer.networks.formats.folder_parts import variant
from lib_trainer.ports import NoiseSchedule
from lib_trainer.refusals import ModelError


@dataclass(frozen=True)
class Components:
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: tuple[nn.Module, ...]
    tokenizer: Any
    schedule: NoiseSchedule
    family: Family = DEFAULT
    file_names: Mapping[Part, Mapping[str, InFile]] = field(default_factory=dict)
    """{part: {name in the module: where it is in the single file}}; empty for a diffusers folder."""
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
    family = whole_family_of(path, _shapes(tensors))
    config, said = _config_beside(path, family), predicted_by(path, family, tensors)
    try:
        built = _build(tensors, config, path.parent, family)
    except Exception as error:  # converters trip over missing pieces in many ways
        if path.with_suffix(".yaml").is_file():
            raise ModelError("checkpoint.misfit_of_yaml", path=path, reason=error) from error
        raise ModelError("checkpoint.misfit", path=path, model=family.model, reason=error) from error
    schedule = NoiseSchedule(built.schedule.alphas_cumprod, said.prediction, said.zero_terminal)
    return replace(built, schedule=schedule, said=said)


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
    params = config["model"]["params"]
    unet, of_unet = build_unet(tensors, config, family)
    vae = build_vae(tensors, config)
    sections = encoder_sections(params) + [{}] * len(family.encoders)
    names: dict[Part, Mapping[str, InFile]] = {"unet": of_unet}
    encoders = []
    for encoder, section in zip(family.encoders, sections, strict=False):
        module, names[encoder.part] = build_encoder(tensors, encoder, section, folder)
        encoders.append(module)
    return Components(unet, vae, tuple(encoders), load_tokenizer(), _schedule(params, family), family, names)


def _schedule(params: Mapping[str, Any], family: Family) -> NoiseSchedule:
    """ldm says its numbers among the model's parameters, sgm among its discretization's. What is predicted is told
    apart, see `predicted_by`."""
    denoiser = (params.get("denoiser_config") or {}).get("params") or {}
    steps = (denoiser.get("discretization_config") or {}).get("params") or {}
    start, end = (params.get(name, steps.get(name, usual)) for name, usual in LINEAR.items())
    count = params.get("timesteps", steps.get("num_timesteps", 1000))
    return NoiseSchedule(torch.cumprod(1 - _scaled_linear(start, end, count), 0), family.prediction)


LINEAR = {"linear_start": 0.00085, "linear_end": 0.0120}
"""sgm's LegacyDDPMDiscretization, and every published model."""


def _scaled_linear(start: float, end: float, steps: int) -> torch.Tensor:
    """Betas whose square roots are evenly spaced, float64 (arXiv:2112.10752's code)."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _load_folder(folder: Path) -> Components:
    if not (folder / "model_index.json").is_file():
        raise ModelError("folder_model.not_one", path=folder)
    family = checked(model_of_folder(folder), folder)
    try:
        unet = _folder_part(UNet2DConditionModel, folder / "unet")
        vae = _folder_part(AutoencoderKL, folder / "vae")
        encoders = tuple(_folder_encoder(folder, number, one) for number, one in enumerate(family.encoders, start=1))
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError("folder_model.unreadable", path=folder, reason=error) from error
    config = scheduler.config
    betas = _scaled_linear(config.beta_start, config.beta_end, config.num_train_timesteps)
    said = predicted_by(folder, family)
    schedule = NoiseSchedule(torch.cumprod(1 - betas, 0), said.prediction, said.zero_terminal)
    modules = unet.float().eval(), vae.float().eval()
    return Components(*modules, encoders, load_tokenizer(), schedule, family, said=said)


def _folder_encoder(folder: Path, number: int, encoder: Encoder) -> nn.Module:
    kind = CLIPTextModelWithProjection if encoder.pooled else CLIPTextModel
    place = folder / ("text_encoder" if number == 1 else f"text_encoder_{number}")
    module: nn.Module = _folder_part(kind, place).float().eval()
    return module


def _folder_part(kind: Any, place: Path) -> Any:
    """As the toolbox reads it: one variant of its files."""
    return kind.from_pretrained(place, local_files_only=True, variant=variant(place))


def model_of_folder(folder: Path) -> Family | Stranger:
    """What a diffusers folder is of, by the UNet's own description; loads nothing."""
    described = _unet_of_folder(folder)
    several = all((folder / name).is_dir() for name in ("text_encoder", "text_encoder_2"))
    return folder_model(described, several=several)


def folder_inpaints(folder: Path) -> bool:
    """Whether a diffusers folder's UNet does."""
    return _unet_of_folder(folder).get("in_channels") == INPAINTING


def _unet_of_folder(folder: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # reading the UNet says the rest
        return {}
    return described
