"""Ranks and alphas of a LoRA file, read from its tensors, in sd-scripts' and LyCORIS' names.

`ss_network_dim` and `ss_network_alpha` are one number where all layers agree, else `Dynamic` (sd-scripts, merge_lora.py
and resize_lora.py). 3×3 convolutions have their own, `conv_dim` and `conv_alpha` of `ss_network_args`; where the UNet's
blocks differ, its `block_dims` and `block_alphas` list them all, 0 where there is none (sd-scripts, lora.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lib_trainer.families.detect import lora_of
from lib_trainer.families.family import Unet
from lib_trainer.families.known import DEFAULT
from lib_trainer.families.names import is_spatial

BUNDLED = "bundle_emb."
DYNAMIC = "Dynamic"
RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Tensors whose first dimension is the rank."""


@dataclass(frozen=True)
class _Layer:
    """`rank` is None for a layer that is stored whole (LoKr with two whole factors)."""

    key: str
    rank: int | None
    alpha: float | None
    spatial: bool


def with_ranks(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The metadata with what the tensors say. Files without any layer are left as they are."""
    layers = _layers(tensors)
    if not layers:
        return dict(metadata)
    flat = [layer for layer in layers if not layer.spatial] or layers
    spatial = [layer for layer in layers if layer.spatial] if flat is not layers else []
    found = dict(metadata) | {
        "ss_network_dim": _common(flat, lambda layer: layer.rank),
        "ss_network_alpha": _common(flat, lambda layer: layer.alpha),
    }
    arguments = _arguments(metadata) | _block_lists(flat, (lora_of(tensors, metadata) or DEFAULT).unet)
    if spatial:
        arguments["conv_dim"] = _common(spatial, lambda layer: layer.rank)
        arguments["conv_alpha"] = _common(spatial, lambda layer: layer.alpha)
    if arguments:
        found["ss_network_args"] = json.dumps(arguments)
    return found


def _layers(tensors: Mapping[str, torch.Tensor]) -> list[_Layer]:
    own: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, suffix = name.partition(".")
        if not name.startswith(BUNDLED):
            own.setdefault(key, {})[suffix] = tensor
    layers = []
    for key, parts in own.items():
        ranked = next((parts[name] for name in RANKED if name in parts), None)
        stored = parts.get("alpha")
        rank = None if ranked is None else int(ranked.shape[0])
        alpha = float(stored) if stored is not None else None if rank is None else float(rank)
        layers.append(_Layer(key, rank, alpha, is_spatial(key)))
    return layers


def _arguments(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        held = json.loads(metadata.get("ss_network_args") or "{}")
    except (ValueError, RecursionError):
        return {}
    return dict(held) if isinstance(held, dict) else {}


def _common(layers: list[_Layer], value: Callable[[_Layer], float | None]) -> str:
    values = {value(layer) for layer in layers} - {None}
    return str(values.pop()) if len(values) == 1 else DYNAMIC if values else "None"


def _block_lists(layers: list[_Layer], unet: Unet) -> dict[str, str]:
    """Nothing where all blocks agree, or where one disagrees in itself."""
    by_block: dict[str, list[_Layer]] = {}
    for layer in layers:
        block = unet.block_of_key(layer.key)
        if block is not None:
            by_block.setdefault(block, []).append(layer)
    lists: dict[str, str] = {}
    for name, value in (("block_dims", lambda layer: layer.rank), ("block_alphas", lambda layer: layer.alpha)):
        told = {block: _common(own, value) for block, own in by_block.items()}
        if len(set(told.values())) > 1 and DYNAMIC not in told.values():
            lists[name] = ",".join(told.get(block, "0") for block in unet.blocks)
    return lists
