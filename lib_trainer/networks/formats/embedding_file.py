"""Embeddings (Textual Inversion; Gal et al. 2022, arXiv:2208.01618) in the layouts that the WebUI reads.

`.pt`: `string_to_token {"*": 265}`, `string_to_param {"*": (n, D)}`, `name`, `step`, `sd_checkpoint` and
`sd_checkpoint_name`. `.safetensors`: exactly one tensor (n, D), which sd-scripts calls `emb_params`. diffusers'
`learned_embeds.bin`: {"<word>": (D,) or (n, D)}. Pictures that carry an embedding: see `picture_embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib_trainer.families.detect import embedding_of
from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT
from lib_trainer.networks.formats.picture_embedding import PICTURES, read_picture
from lib_trainer.networks.formats.reading import read_file
from lib_trainer.networks.formats.tensor_file import write_tensors
from lib_trainer.networks.formats.torch_archive import write_archive
from lib_trainer.networks.formats.writing import new_file
from lib_trainer.refusals import ModelError

ENDINGS = (".pt", ".safetensors", ".bin")
"""What the WebUI looks for embeddings in, besides pictures."""


def write_embedding(path: Path, rows: torch.Tensor, facts: Mapping[str, str], *, overwrite: bool) -> None:
    """Write rows (n, D) in the layout of the path's ending. Raises `SaveError` naming the file."""
    vectors = rows.detach().to("cpu", torch.float32, copy=True).contiguous()
    if path.suffix == ".pt":
        data = {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": vectors},
            "name": path.stem,
            "step": int(facts.get("ss_steps", 0)),
            "sd_checkpoint": facts.get("ss_new_sd_model_hash", "")[:10] or None,
            "sd_checkpoint_name": Path(facts.get("ss_sd_model_name", "")).stem or None,
        }
        with new_file(path, overwrite=overwrite) as file:
            write_archive(file, data)
    else:
        write_tensors(path, {DEFAULT.encoders[0].rows: vectors}, facts, overwrite=overwrite)


def read_embedding(path: Path, family: Family = DEFAULT) -> torch.Tensor:
    """Rows (n, D) fp32 of an embedding for models of this family. Raises `ModelError` naming the file."""
    if path.suffix.lower() in PICTURES:
        data: Any = read_picture(path)
        if data is None:
            raise ModelError("embedding.none_in_picture", path=path)
    else:
        data = read_file(path)
    stored = data.get("string_to_param", data) if isinstance(data, Mapping) else {"*": data}
    stored = getattr(stored, "values", stored) if not isinstance(stored, Mapping) else stored  # a ParameterDict
    tensors = {name: one for name, one in dict(stored).items() if isinstance(one, torch.Tensor)} if stored else {}
    other = embedding_of(tensors.keys())
    if other is not None and other is not family:
        raise ModelError("embedding.of_another_family", path=path, found=other.word, wanted=family.word)
    rows = [tensor for tensor in tensors.values() if tensor.ndim in (1, 2) and tensor.is_floating_point()]
    if len(rows) != 1 or len(tensors) != 1 or not rows[0].numel():
        raise ModelError("embedding.not_one", path=path)
    return rows[0].detach().float().reshape(-1, rows[0].shape[-1]).clone()
