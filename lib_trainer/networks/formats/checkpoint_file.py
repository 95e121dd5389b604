"""Whole checkpoints: one .safetensors file in CompVis' layout, as the WebUI loads it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from lib_trainer.errors import ModelError
from lib_trainer.networks.formats.writing import write_new
from lib_trainer.ports import Part

PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
"""Of the tensors that loaders read. What else files hold (`model_ema.`, the schedule, optimizer states) is junk."""

PARTS: dict[str, Part] = {"model": "unet", "cond_stage_model": "te1"}


def is_weight(name: str) -> bool:
    """Whether a tensor belongs into a checkpoint. `position_ids` are 0, 1, 2 … and break where a merge halved them."""
    return name.startswith(PREFIXES) and not name.endswith("position_ids") and ".loss." not in name


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    beside: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Write all tensors in `dtype`, and the base model's .yaml, where `beside` has one, under the new name.

    Raises `SaveError` naming the file and the remedy.
    """
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    write_new(path, safetensors.torch.save(stored, metadata=dict(metadata)), overwrite=overwrite)
    described = beside.with_suffix(".yaml") if beside else None
    if described is not None and described.is_file():
        shutil.copyfile(described, path.with_suffix(".yaml"))


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file. Raises `ModelError` naming the file."""
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}: check the name.") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} is not a readable .safetensors file ({error}): choose another one.") from error
    return {name: tensor for name, tensor in tensors.items() if is_weight(name)}


def read_names(path: Path) -> list[str]:
    """The names of a file's tensors, from its header alone. Raises `ModelError` naming the file."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}: check the name.") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} is not a readable .safetensors file ({error}): choose another one.") from error


def count_parameters(path: Path) -> dict[Part, int]:
    """Parameters of the UNet and the text encoder, from the file's header alone; nothing for a file that is none."""
    counts: dict[Part, int] = {"unet": 0, "te1": 0}
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            for name in filter(is_weight, file.keys()):
                part = PARTS.get(name.partition(".")[0])
                if part is not None:
                    counts[part] += math.prod(file.get_slice(name).get_shape())
    except (OSError, safetensors.SafetensorError):
        return {}
    return counts
