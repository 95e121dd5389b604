"""A merge as steps over files: rows of the result, computed from the rows of what goes in. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from lib_trainer.families.detect import FIRST
from lib_trainer.toolbox.modes import AT_ONCE, Choices, Looked, Mode, Rows, Spread, Weights
from lib_trainer.toolbox.shares import Shares
from lib_trainer.toolbox.source import Source


class Input:
    """One model of a step. Up to `AT_ONCE` of its numbers are given in memory that is used again: taking new memory
    costs more than most formulas."""

    def __init__(self, model: Source | Step) -> None:
        self._model, self._numbers = model, torch.empty(0)
        self._name, self._raw = "", torch.empty(0)

    def read(self, name: str, rows: slice) -> torch.Tensor:
        """Rows in fp32: the caller's own until the next are read."""
        if isinstance(self._model, Step):
            made = self._model.read(name, rows)
            return made if made.numel() > AT_ONCE else self._copy(made)
        if name != self._name:
            self._name, self._raw = name, self._model.raw(name)
        return self._copy(self._raw[rows] if self._raw.ndim else self._raw)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        count = tensor.numel()
        if count > AT_ONCE:
            return tensor.to(torch.float32, copy=True)
        if not len(self._numbers):
            self._numbers = torch.empty(AT_ONCE)
        return self._numbers[:count].view(tensor.shape).copy_(tensor)


@dataclass
class Step:
    """One merge of a chain. `inputs`: files, or earlier steps."""

    mode: Mode
    inputs: list[Source | Step]
    shares: Shares
    weights: tuple[float, ...]
    choices: Choices
    spread: Spread = (0.0, 1.0)
    looked: dict[str, Looked] = field(default_factory=dict)
    known: dict[str, Weights] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._models = [Input(one) for one in self.inputs]

    def weights_of(self, name: str) -> Weights:
        """Found once for a tensor, which is asked for with each of its rows."""
        if name not in self.known:
            self.known[name] = Weights(*self.shares.of(name), self.weights)
        return self.known[name]

    def same(self, name: str) -> Source | Step | None:
        """The input whose tensor the result's is, if it is one of them exactly."""
        place = self.mode.same(self.weights_of(name))
        return None if place is None else self.inputs[place]

    def read(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of the result in fp32: the caller's own until the next are read."""
        weights = self.weights_of(name)
        place = self.mode.same(weights)
        if place is not None:
            return self._models[place].read(name, rows)
        if self.mode.looks and name not in self.looked:
            self.looked = {name: self.mode.looks(self.rows(name), weights, self.choices, self.spread)}
        pieces = [one.read(name, rows) for one in self._models]
        if name == FIRST:
            pieces = [_widened(piece, pieces[0].shape[1]) for piece in pieces]
        return self.mode.compute(pieces, weights, self.choices, self.looked.get(name), name, rows.start or 0)

    def rows(self, name: str) -> Rows:
        shape = shape_in(self.inputs[0], name)
        return Rows(name, shape, lambda model, rows: self._models[model].read(name, rows), len(self.inputs), self.whole)

    @property
    def whole(self) -> bool:
        """Whether the tensor has to be computed as a whole, here or before."""
        return self.mode.whole or any(isinstance(one, Step) and one.whole for one in self.inputs)


def shape_in(one: Source | Step, name: str) -> tuple[int, ...]:
    """Of a tensor that `has` holds for: a step that hands an input's on may have others that lack it."""
    return one.tensors[name].shape if isinstance(one, Source) else shape_in(one.same(name) or one.inputs[0], name)


def has(one: Source | Step, name: str) -> bool:
    """Whether a tensor can be computed: every model that the step reads for it has it."""
    if isinstance(one, Source):
        return name in one.tensors
    same = one.same(name)
    return has(same, name) if same is not None else all(has(each, name) for each in one.inputs)


def _widened(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Rows of the UNet's first weight (O, C, 3, 3), with zeros for the channels that a model does not read."""
    lacking = channels - weight.shape[1]
    return F.pad(weight, (0, 0, 0, 0, 0, lacking)) if lacking else weight


def merged(step: Step, name: str) -> torch.Tensor | Iterator[torch.Tensor]:
    """A tensor of the result: an input's own where it is exactly that, else computed row by row, each piece in the
    memory of the one before."""
    one: Source | Step | None = step
    while isinstance(one, Step):
        same = one.same(name)
        if same is None:
            break
        one = same
    if isinstance(one, Source):
        return one.raw(name)
    assert isinstance(one, Step)
    return (one.read(name, rows) for rows in one.rows(name))
