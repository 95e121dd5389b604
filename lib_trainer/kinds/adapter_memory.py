"""How much of a model's table learns in adapters, and what a step keeps between their thin products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lib_trainer.networks.adapters import AdapterSpec
from lib_trainer.networks.lora import make_adapter
from lib_trainer.ports import AdaptableModule
from lib_trainer.training.memory_table import Layer, Table

Plan = Callable[[Sequence[AdaptableModule]], Sequence[tuple[AdaptableModule, AdapterSpec]]]
"""Which of the modules get an adapter, and of what kind and rank."""


def learned_numbers(plan: Plan, table: Table) -> dict[str, int]:
    """How many numbers learn, by part."""
    found: dict[str, int] = {}
    for target, spec, layer in _planned(plan, table):
        found[target.part] = found.get(target.part, 0) + layer.count * _numbers_of(target.module, spec)
    return found


def hidden_numbers(plan: Plan, table: Table) -> float:
    """Numbers between the two thin products, for each cell of a latent."""
    return sum(spec.rank * layer.count * layer.share for _, spec, layer in _planned(plan, table))


def _planned(plan: Plan, table: Table) -> list[tuple[AdaptableModule, AdapterSpec, Layer]]:
    modules, layers = _modules(tuple(table.layers))
    return [(one, spec, layers[one.key]) for one, spec in plan(modules)]


@functools.lru_cache(maxsize=8)
def _modules(layers: tuple[Layer, ...]) -> tuple[Sequence[AdaptableModule], Mapping[str, Layer]]:
    """The layers as an adapter's plan wants them, without contents."""
    keyed = {f"layer_{index}": layer for index, layer in enumerate(layers)}
    modules = []
    with torch.device("meta"):
        for key, layer in keyed.items():
            kernel, half = layer.kernel, layer.kernel // 2
            module: nn.Module = (
                nn.Conv2d(layer.inner, layer.out, kernel, layer.stride, half)
                if kernel
                else nn.Linear(layer.inner, layer.out)
            )
            modules.append(AdaptableModule(key, module, layer.part, layer.group, layer.block))
    return modules, keyed


def _numbers_of(layer: Any, spec: AdapterSpec) -> int:
    return _count(tuple(layer.weight.shape), layer.stride if isinstance(layer, nn.Conv2d) else None, spec)


@functools.lru_cache(maxsize=4096)
def _count(shape: tuple[int, ...], stride: Any, spec: AdapterSpec) -> int:
    with torch.device("meta"):
        layer: nn.Module
        if len(shape) == 4:
            layer = nn.Conv2d(shape[1], shape[0], shape[2], stride)
        else:
            layer = nn.Linear(shape[1], shape[0])
        adapter = make_adapter(AdaptableModule("layer", layer, "unet", "transformer", "middle"), spec)
    return sum(parameter.numel() for parameter in adapter.parameters())
