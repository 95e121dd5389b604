"""A LoRA out of two checkpoints: what the second has beyond the first, layer by layer, and what of it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from lib_trainer.families.detect import model_of
from lib_trainer.families.family import Family, Part
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.decompose import Wanted, energy, lost, split
from lib_trainer.toolbox.figures import Figures, LayerFigure
from lib_trainer.toolbox.layers import Layer, Scheme, by_tensor, layers_of
from lib_trainer.toolbox.mix import lora_tensors, rows_of
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.results import Spool
from lib_trainer.toolbox.source import AT_ONCE, Source
from lib_trainer.toolbox.spelling import tensor_name, to_peft

NORM: tuple[tuple[str, Literal["weight", "bias"]], ...] = (("w_norm", "weight"), ("b_norm", "bias"))
"""What a norm's differences are called, and of which tensor they are."""


@dataclass(frozen=True)
class Plan:
    """What is taken from where.

    layers   whose weights are both there
    norms    layers whose weight and bias have one dimension, taken where they are asked for
    left     tensors that both have and no layer of the result holds
    missing  tensors that one of the two lacks, or that have another shape
    """

    family: Family
    base: Source
    tuned: Source
    layers: tuple[Layer, ...]
    norms: tuple[Layer, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class How:
    """`flat`: of Linear layers and 1×1 convolutions; `spatial`: of 3×3 ones, None: leave them out."""

    flat: Wanted
    spatial: Wanted | None
    parts: tuple[Part, ...]
    norms: bool
    dtype: torch.dtype
    scheme: Scheme
    device: torch.device


def plan(base: Source, tuned: Source, how: How) -> Plan:
    """By the headers alone. Raises `ModelError` for what is no checkpoint, or for two families."""
    found = [model_of(one.shapes) for one in (base, tuned)]
    for one, source in zip(found, (base, tuned)):
        if not isinstance(one, Family):
            raise ModelError("adapter_file.no_model", path=source.path)
    first, second = found
    assert isinstance(first, Family) and isinstance(second, Family)
    if first is not second:
        raise ModelError("adapter_file.families", base=base.path, one=first.word, tuned=tuned.path, other=second.word)
    both = {n for n, one in base.tensors.items() if n in tuned.tensors and tuned.tensors[n].shape == one.shape}
    layers = tuple(layer for layer in layers_of(first) if _taken(layer, base, how) and layer.tensor() in both)
    norms = tuple(
        layer for layer in layers_of(first)
        if how.norms and layer.part in how.parts and layer.tensor() in both and layer.tensor("bias") in both
        and len(base.tensors[layer.tensor()].shape) == 1
    )  # fmt: skip
    if not layers:
        raise ModelError("adapter_file.nothing_shared", base=base.path, tuned=tuned.path)
    held = {layer.tensor() for layer in layers} | {layer.tensor(kind) for layer in norms for _, kind in NORM}
    mine = {name for name in {*base.tensors, *tuned.tensors} if first.part_of(name) and "position_ids" not in name}
    return Plan(first, base, tuned, layers, norms, tuple(sorted(mine & both - held)), tuple(sorted(mine - both)))


def _taken(layer: Layer, base: Source, how: How) -> bool:
    if not layer.adapted or layer.part not in how.parts or layer.tensor() not in base.tensors:
        return False
    shape = base.tensors[layer.tensor()].shape
    return len(shape) in (2, 4) and not (how.spatial is None and shape[2:] not in ((), (1, 1)))


def extract(planned: Plan, how: How, spool: Spool, progress: Progress) -> Figures:
    """Put the LoRA's tensors into the spool. Raises `ModelError` for numbers that are none."""
    found = Figures()
    for layer, delta in differences(planned, planned.layers):
        total = energy(delta)
        if not total:
            found.same += 1
        else:
            flat = delta.to(how.device).flatten(1)
            wanted = how.spatial if delta.ndim == 4 and delta.shape[2:] != (1, 1) else how.flat
            assert wanted is not None
            parts = split(flat, wanted)
            own = lora_tensors(layer, parts.up.cpu(), parts.down.cpu(), how.dtype)
            missing = lost(delta.flatten(1), own["lora_up.weight"].flatten(1), own["lora_down.weight"].flatten(1))
            found.layers[layer.name("kohya")] = LayerFigure(parts.rank, parts.total, missing, parts.advised)
            for suffix, tensor in (to_peft(own)[0] if how.scheme == "peft" else own).items():
                spool.add(tensor_name(layer, suffix, how.scheme), tensor)
        progress.advance(delta.numel())
    for layer in planned.norms:
        moved = {name: _moved(planned, layer.tensor(kind)) for name, kind in NORM}
        if any(bool(one.any()) for one in moved.values()):
            for name, one in moved.items():
                spool.add(tensor_name(layer, name, how.scheme), one.to(how.dtype))
    for name in planned.left:
        found.left += _energy_apart(planned, name)
        progress.advance(planned.base.tensors[name].count)
    return found


def numbers(planned: Plan) -> int:
    """How many are looked at."""
    tensors = planned.base.tensors
    fused = {name: 1 / len(own) for name, own in by_tensor(planned.family).items()}
    return round(sum(tensors[layer.tensor()].count * fused[layer.tensor()] for layer in planned.layers)) + sum(
        tensors[name].count for name in planned.left
    )


def differences(planned: Plan, layers: tuple[Layer, ...]) -> Iterator[tuple[Layer, torch.Tensor]]:
    """Tuned minus base in fp32, one layer after another."""
    for layer in layers:
        base, tuned = (rows_of(source.raw(layer.tensor()), layer) for source in (planned.base, planned.tuned))
        yield layer, _checked(tuned.to(torch.float32) - base.to(torch.float32), planned, layer.tensor())


def _moved(planned: Plan, name: str) -> torch.Tensor:
    return _checked(planned.tuned.number(name) - planned.base.raw(name).to(torch.float32), planned, name)


def _energy_apart(planned: Plan, name: str) -> float:
    """Of the difference of a tensor that may be large (token tables), in pieces."""
    base, tuned = (source.raw(name).reshape(-1) for source in (planned.base, planned.tuned))
    return sum(
        energy(_checked(one.to(torch.float32) - other.to(torch.float32), planned, name))
        for one, other in zip(tuned.split(AT_ONCE), base.split(AT_ONCE), strict=True)
    )


def _checked(delta: torch.Tensor, planned: Plan, name: str) -> torch.Tensor:
    if not bool(torch.isfinite(delta).all()):
        for source in (planned.base, planned.tuned):
            if not bool(torch.isfinite(source.number(name)).all()):
                raise ModelError("adapter_file.not_finite", path=source.path, name=name)
    return delta
