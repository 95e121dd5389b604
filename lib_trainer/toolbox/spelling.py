"""How tensors of a LoRA file are called in each scheme of names, and the values that a scheme has no place for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lib_trainer.networks.formats.tensor_file import DTYPES, type_name
from lib_trainer.toolbox.layers import Layer, Scheme

PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "dora_scale": "lora_magnitude_vector"}
ALPHAS = "trainer_alphas"
"""Metadata by which a file that went to peft's names gets its alphas and the form of its magnitudes back."""


def tensor_name(layer: Layer, suffix: str, scheme: Scheme) -> str:
    """`lora_unet_….lora_down.weight`, or `unet.….lora_A.weight`. What peft has no name for keeps LyCORIS'."""
    return f"{layer.name(scheme)}.{PEFT.get(suffix, suffix) if scheme == 'peft' else suffix}"


@dataclass(frozen=True)
class Noted:
    """What peft's scheme has no place for: a module's alpha (None: it had none) and the type that it was stored in."""

    alpha: float | None
    dtype: torch.dtype


def to_peft(own: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Noted | None]:
    """A LoRA as peft reads it, its alpha put into `up`; other kinds as they are.

    Where the product is not exact in `up`'s own type that becomes the next wider one (fp32, fp64), so that the way back
    finds the same numbers. Magnitudes become one row. Raises `ValueError` for a DoRA that peft cannot hold.
    """
    found = dict(own)
    if not _is_plain(own):
        return found, None
    up, down = own["lora_up.weight"], own["lora_down.weight"]
    rank, stored = int(down.shape[0]), found.pop("alpha", None)
    alpha = float(rank) if stored is None else float(stored)
    if alpha != rank:
        moved = up.double() * (alpha / rank)
        kept = moved.to(up.dtype)
        wider = torch.float32 if up.itemsize < 4 else torch.float64
        found["lora_up.weight"] = kept if torch.equal(kept.double(), moved) else moved.to(wider)
    if "dora_scale" in own:
        magnitude = own["dora_scale"]
        if magnitude.shape[0] != up.shape[0]:
            raise ValueError("its DoRA has a magnitude for each input, and peft has one for each output")
        found["dora_scale"] = magnitude.reshape(-1) if down.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
    return found, Noted(None if stored is None else alpha, up.dtype if stored is None else stored.dtype)


def from_peft(own: Mapping[str, torch.Tensor], noted: Noted | None) -> dict[str, torch.Tensor]:
    """The way back, with what was noted; without that alpha is the rank."""
    found = dict(own)
    if not _is_plain(own) or "alpha" in own:
        return found
    up, down = own["lora_up.weight"], own["lora_down.weight"]
    rank = int(down.shape[0])
    if noted is None:
        exact = float(torch.tensor(rank).to(down.dtype)) == rank
        return {**found, "alpha": torch.tensor(float(rank), dtype=down.dtype if exact else torch.float32)}
    if noted.alpha is not None:
        if noted.alpha != rank:
            found["lora_up.weight"] = _divided(up, noted.alpha / rank, down.dtype)
        found["alpha"] = torch.tensor(noted.alpha, dtype=noted.dtype)
    return found


def _is_plain(own: Mapping[str, torch.Tensor]) -> bool:
    """Whether peft has this kind: LoRA without a core, and with an alpha that is more than nothing."""
    nothing = "alpha" in own and not float(own["alpha"])
    return "lora_down.weight" in own and "lora_mid.weight" not in own and "scale" not in own and not nothing


def _divided(up: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    return (up.double() / scale).to(dtype)


def with_notes(noted: Mapping[str, Noted]) -> dict[str, str]:
    """Metadata of what was noted, by the modules' names in peft's scheme."""
    told = {name: [one.alpha, type_name(one.dtype)] for name, one in noted.items()}
    return {ALPHAS: json.dumps(told)} if told else {}


def notes_in(metadata: Mapping[str, str]) -> dict[str, Noted]:
    """What a file that was converted here had before; nothing for others."""
    types = {name: dtype for dtype, name in DTYPES.items()}
    try:
        held = json.loads(metadata.get(ALPHAS, "{}"))
        return {
            name: Noted(None if alpha is None else float(alpha), types[dtype]) for name, (alpha, dtype) in held.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}
