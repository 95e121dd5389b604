"""A diffusers folder opened as if it were a single file: its parts by the names of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lib_trainer.families.detect import folder_model
from lib_trainer.families.family import VAE_PREFIX, Family
from lib_trainer.families.prediction import V_KEY, ZERO_KEY
from lib_trainer.networks.formats.folder_parts import chosen
from lib_trainer.networks.formats.mapped import Stored, map_safetensors
from lib_trainer.networks.formats.plain_pickle import read_plain
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.layouts import checkpoint_text, ldm_unet, ldm_vae

ENCODERS = ("text_encoder", "text_encoder_2")


def read_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of a diffusers folder. Raises `ModelError` naming what is missing or not known."""
    if not (folder / "model_index.json").is_file():
        raise ModelError("folder_model.not_one", path=folder)
    family = folder_model(_json(folder / "unet" / "config.json"), several=(folder / ENCODERS[1]).is_dir())
    if not isinstance(family, Family):
        raise ModelError("toolbox.folder_of_stranger", path=folder, found=family.word)
    unet = ldm_unet(_part(folder / "unet"), family.unet)
    found = {f"{family.unet.prefix}{name}": one for name, one in unet.items()}
    for encoder, called in zip(family.encoders, ENCODERS, strict=False):
        text = checkpoint_text(_part(folder / called), encoder)
        found |= {f"{encoder.prefix}{name}": one for name, one in text.items()}
    if (folder / "vae").is_dir():
        found |= {f"{VAE_PREFIX}{name}": one for name, one in ldm_vae(_part(folder / "vae")).items()}
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("prediction_type") == "v_prediction":
        found[V_KEY] = _marker()
    if scheduler.get("rescale_betas_zero_snr"):
        found[ZERO_KEY] = _marker()
    return found


def _marker() -> Stored:
    return Stored((0,), torch.float32, lambda: torch.empty(0))


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _part(folder: Path) -> dict[str, Stored]:
    """The tensors of one part, whole or in pieces: of one variant alone."""
    tensors: dict[str, Stored] = {}
    for path in chosen(folder):
        tensors |= _read(path)
    if not tensors:
        raise ModelError("toolbox.folder_without", path=folder)
    return tensors


def _read(path: Path) -> dict[str, Stored]:
    if path.suffix == ".safetensors":
        return map_safetensors(path)[0]
    tensors = {name: one for name, one in read_plain(path).items() if isinstance(one, torch.Tensor)}
    return {name: Stored(tuple(one.shape), one.dtype, one.detach) for name, one in tensors.items()}
