"""A word's vectors and the names that their tensors have in files."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lib_trainer.families.family import Family, Part


def named_rows(rows: Mapping[Part, torch.Tensor], family: Family, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """{`emb_params`: (n, D)}, or {`clip_l`: …, `clip_g`: …}: copies on the CPU."""
    return {one.rows: rows[one.part].detach().to("cpu", dtype, copy=True).contiguous() for one in family.encoders}


def rows_of(tensors: Mapping[str, torch.Tensor], family: Family) -> dict[Part, torch.Tensor] | None:
    """Rows (n, width) fp32 for each text encoder of the family; None where the tensors are not those of one word.

    The tensor of a family with one text encoder may have any name.
    """
    names = [encoder.rows for encoder in family.encoders]
    if len(names) == 1:
        names = list(tensors)
    found = [tensors[name] for name in names if name in tensors]
    if len(found) != len(family.encoders) or len(tensors) != len(found):
        return None
    if not all(one.ndim in (1, 2) and one.is_floating_point() and one.numel() for one in found):
        return None
    rows = [one.detach().float().reshape(-1, one.shape[-1]).clone() for one in found]
    if len({len(one) for one in rows}) > 1:
        return None
    return {encoder.part: one for encoder, one in zip(family.encoders, rows, strict=True)}
