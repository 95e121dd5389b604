"""Embeddings (Textual Inversion; Gal et al. 2022, arXiv:2208.01618) in the two layouts that the WebUI reads.

`.pt`: `string_to_token {"*": 265}`, `string_to_param {"*": (n, D)}`, `name`, `step`, `sd_checkpoint` and
`sd_checkpoint_name`. `.safetensors`: exactly one tensor (n, D), which sd-scripts calls `emb_params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from lib_trainer.errors import ModelError
from lib_trainer.networks.formats.plain_pickle import read_plain, to_pickle
from lib_trainer.networks.formats.writing import write_new

ENDINGS = (".pt", ".safetensors", ".bin", ".png", ".webp", ".jxl", ".avif")
"""What the WebUI looks for embeddings in."""


def write_embedding(path: Path, rows: torch.Tensor, facts: Mapping[str, str], *, overwrite: bool) -> None:
    """Write rows (n, D) in the layout of the path's ending. Raises `SaveError` naming the file."""
    vectors = rows.detach().to("cpu", torch.float32, copy=True).contiguous()
    if path.suffix == ".pt":
        data = to_pickle(
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": vectors},
                "name": path.stem,
                "step": int(facts.get("ss_steps", 0)),
                "sd_checkpoint": facts.get("ss_new_sd_model_hash", "")[:10] or None,
                "sd_checkpoint_name": Path(facts.get("ss_sd_model_name", "")).stem or None,
            }
        )
    else:
        data = safetensors.torch.save({"emb_params": vectors}, metadata=dict(facts))
    write_new(path, data, overwrite=overwrite)


def read_embedding(path: Path) -> torch.Tensor:
    """Rows (n, D) fp32 of an embedding for SD 1.x or 2.x. Raises `ModelError` naming the file."""
    if path.suffix.lower() == ".safetensors":
        tensors: dict[str, object] = dict(_read_safetensors(path))
    else:
        data = read_plain(path)
        stored = data.get("string_to_param", data)
        tensors = dict(stored) if isinstance(stored, dict) else {}
    rows = [tensor for tensor in tensors.values() if isinstance(tensor, torch.Tensor)]
    if {"clip_l", "clip_g"} <= tensors.keys():
        raise ModelError(f"{path} is an embedding for SDXL: choose one for SD 1.x.")
    if len(rows) != 1 or len(rows) != len(tensors) or rows[0].ndim not in (1, 2):
        raise ModelError(f"{path} is no embedding (one tensor of vectors was expected): choose another file.")
    return rows[0].detach().float().reshape(-1, rows[0].shape[-1])


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
        return tensors
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}: check the name.") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} is not a readable .safetensors file ({error}): choose another one.") from error
