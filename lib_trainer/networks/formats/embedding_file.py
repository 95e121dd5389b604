"""Embeddings (Textual Inversion; Gal et al. 2022, arXiv:2208.01618) in the layouts that the WebUI reads.

`.pt`: `string_to_token {"*": 265}`, `string_to_param {"*": (n, D)}`, `name`, `step`, `sd_checkpoint` and
`sd_checkpoint_name`. `.safetensors`: exactly one tensor (n, D), which sd-scripts calls `emb_params`. Of models with
several text encoders both hold one tensor for each, `clip_l` (n, 768) and `clip_g` (n, 1280), and nothing else.
diffusers' `learned_embeds.bin`: {"<word>": (D,) or (n, D)}. Pictures that carry an embedding: see `picture_embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib_trainer.families.detect import embedding_of
from lib_trainer.families.family import Family, Part
from lib_trainer.families.known import DEFAULT
from lib_trainer.networks.formats.embedding_rows import named_rows, rows_of
from lib_trainer.networks.formats.picture_embedding import PICTURES, read_picture
from lib_trainer.networks.formats.reading import read_file
from lib_trainer.networks.formats.tensor_file import write_tensors
from lib_trainer.networks.formats.torch_archive import write_archive
from lib_trainer.networks.formats.writing import new_file
from lib_trainer.ports import Rows
from lib_trainer.refusals import ModelError

ENDINGS = (".pt", ".safetensors", ".bin")
"""What the WebUI looks for embeddings in, besides pictures."""


def write_embedding(path: Path, rows: Rows, facts: Mapping[str, str], family: Family, *, overwrite: bool) -> None:
    """Write a family's rows in the layout of the path's ending. Raises `SaveError` naming the file."""
    tensors = named_rows(rows, family, torch.float32)
    if path.suffix != ".pt":
        write_tensors(path, tensors, facts, overwrite=overwrite)
        return
    data: dict[str, Any] = dict(tensors)
    if len(tensors) == 1:
        data = {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": next(iter(tensors.values()))},
            "name": path.stem,
            "step": int(facts.get("ss_steps", 0)),
            "sd_checkpoint": facts.get("ss_new_sd_model_hash", "")[:10] or None,
            "sd_checkpoint_name": Path(facts.get("ss_sd_model_name", "")).stem or None,
        }
    with new_file(path, overwrite=overwrite) as file:
        write_archive(file, data)


def read_embedding(path: Path, family: Family = DEFAULT) -> dict[Part, torch.Tensor]:
    """Rows fp32 of an embedding for models of this family, (n, width) for each of its text encoders.

    Raises `ModelError` naming the file, also for one of another family.
    """
    if path.suffix.lower() in PICTURES:
        data: Any = read_picture(path)
        if data is None:
            raise ModelError("embedding.none_in_picture", path=path)
    else:
        data = read_file(path)
    stored = data.get("string_to_param", data) if isinstance(data, Mapping) else {"*": data}
    stored = getattr(stored, "values", stored) if not isinstance(stored, Mapping) else stored  # a ParameterDict
    tensors = {name: one for name, one in dict(stored).items() if isinstance(one, torch.Tensor)} if stored else {}
    other = embedding_of({name: one.shape[-1] for name, one in tensors.items() if one.ndim})
    if other is None and len(tensors) < len(family.encoders):
        other = DEFAULT
    if other is not None and other is not family:
        raise ModelError("embedding.of_another_family", path=path, found=other.word, wanted=family.word)
    rows = rows_of(tensors, family)
    if rows is None:
        raise ModelError("embedding.not_one", path=path)
    return rows
