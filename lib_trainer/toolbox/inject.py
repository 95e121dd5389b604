"""LoRAs of any kind into a checkpoint: each weight that they change is computed in fp32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lib_trainer.families.detect import model_of
from lib_trainer.families.family import Family
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.adapters import Kind, bias_difference, difference, kind_of, product
from lib_trainer.toolbox.layers import Layer
from lib_trainer.toolbox.mix import rows_of
from lib_trainer.toolbox.opened import OpenLora
from lib_trainer.toolbox.source import Source
from lib_trainer.toolbox.strengths import Strength


@dataclass(frozen=True)
class Taken:
    """A file and how strongly it is meant."""

    lora: OpenLora
    strength: Strength


@dataclass(frozen=True)
class Injection:
    """changes  {a tensor's name: what is added to it, in the order of the files}
    absent   {file: names of modules that the checkpoint does not have}
    """

    model: Source
    family: Family
    changes: Mapping[str, Sequence[tuple[Layer, Taken]]]
    absent: Mapping[str, tuple[str, ...]]


def checkpoint_family(model: Source) -> Family:
    """Raises `ModelError` for a file that is no checkpoint of a family that is known."""
    found = model_of(model.shapes)
    if not isinstance(found, Family):
        raise ModelError("adapter_file.no_model", path=model.path)
    return found


def check_family(lora: OpenLora, model: Source, family: Family) -> None:
    """Raises `ModelError` where the two are not of one family."""
    if lora.family is not family:
        raise ModelError(
            "adapter_file.families", base=model.path, one=family.word, tuned=lora.path, other=lora.family.word
        )


def plan(model: Source, taken: Sequence[Taken]) -> Injection:
    """By the headers alone. Raises `ModelError` for another family, other shapes, and a file without effect."""
    family = checkpoint_family(model)
    changes: dict[str, list[tuple[Layer, Taken]]] = {}
    absent = {}
    for one in taken:
        check_family(one.lora, model, family)
        lacking, found = [], 0
        for layer, module in one.lora.modules.items():
            if layer.tensor() not in model.tensors:
                lacking.append(module.name)
                continue
            found += 1
            _check_shape(one.lora, layer, rows_shape(model.tensors[layer.tensor()].shape, layer))
            if one.strength.of(layer):
                changes.setdefault(layer.tensor(), []).append((layer, one))
                if {"diff_b", "b_norm"} & set(module.tensors) and layer.tensor("bias") in model.tensors:
                    changes.setdefault(layer.tensor("bias"), []).append((layer, one))
        if not found:
            raise ModelError("lora.other_model", path=one.lora.path, family=one.lora.family.word)
        if lacking:
            absent[str(one.lora.path)] = tuple(lacking)
    return Injection(model, family, changes, absent)


def rows_shape(shape: tuple[int, ...], layer: Layer) -> tuple[int, ...]:
    return shape if layer.third is None else (shape[0] // 3, *shape[1:])


def _check_shape(lora: OpenLora, layer: Layer, shape: tuple[int, ...]) -> None:
    """Of kinds whose product tells: with tensors that have a shape and no numbers."""
    own = {suffix: torch.empty(one, device="meta") for suffix, one in lora.shapes(layer).items()}
    kind = kind_of(own)
    try:
        fits = kind is Kind.OFT or (kind is not None and product(own, kind).numel() == math.prod(shape))
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        told = {suffix: tuple(one.shape) for suffix, one in own.items() if suffix != "alpha"}
        raise ModelError(
            "adapter_file.shapes", path=lora.path, name=lora.modules[layer].name, there=str(told), here=str(shape)
        )


def made(injection: Injection, name: str) -> torch.Tensor:
    """A tensor of the result: as it was where nothing is added, else in fp32."""
    changes = injection.changes.get(name)
    if not changes:
        return injection.model.raw(name)
    whole = injection.model.number(name)
    for layer, taken in changes:
        part = rows_of(whole, layer)
        own, strength = taken.lora.own(layer), taken.strength.of(layer)
        if name == layer.tensor("bias"):
            moved = bias_difference(own)
            assert moved is not None
            part += moved.reshape(part.shape) * strength
            continue
        try:
            part += difference(own, part, tuple(part.shape)) * strength
        except ValueError as error:
            raise ModelError("lora.misfit", path=taken.lora.path, reason=error) from error
    return whole
