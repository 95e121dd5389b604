"""A running average of what learns (EMA), for every kind of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

PIECE = 1 << 20
"""Numbers that change places at a time."""


class Average:
    """Average weights of a run: θ̄ ← d·θ̄ + (1 − d)·θ after each step that learned (Polyak & Juditsky 1992).

    The decay of step n is at most (1 + n) / (10 + n), so that early weights are forgotten soon.
    """

    def __init__(self, learned: Sequence[nn.Parameter], decay: float, begins: int = 0) -> None:
        """`begins`: the step after which others learn than before; n is counted anew from there."""
        self._learned, self._decay, self._steps, self._begins = list(learned), decay, 0, begins
        self.values = [parameter.detach().clone() for parameter in self._learned]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """`step`: the run's, of which some may have learned nothing."""
        self._steps = min(self._steps + 1, step - self._begins if step > self._begins else step)
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for average, parameter in zip(self.values, self._learned, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While this holds, the parameters are the average, and afterwards bit for bit what they were: both change
        places, piece by piece. The little room that this takes is made before anything is moved, and kept: a device
        that is full must not leave a mixture of both."""
        room = self._room()
        self._swap(room)
        try:
            yield
        finally:
            self._swap(room)

    def _room(self) -> torch.Tensor:
        sizes = [piece.numel() for average in self.values for piece in _pieces(average)]
        return self.values[0].new_empty(max(sizes)) if sizes else torch.empty(0)

    @torch.no_grad()
    def _swap(self, room: torch.Tensor) -> None:
        for average, parameter in zip(self.values, self._learned, strict=True):
            for mean, learned in zip(_pieces(average), _pieces(parameter.detach()), strict=True):
                kept = room[: learned.numel()].view(learned.shape)
                kept.copy_(learned)
                learned.copy_(mean)
                mean.copy_(kept)

    @torch.no_grad()
    def settle(self) -> None:
        """After the last step: the parameters become the average. Allocates nothing."""
        for average, parameter in zip(self.values, self._learned, strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        for average, value in zip(self.values, state["values"], strict=True):
            average.copy_(value)


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of a tensor's rows, however it lies in memory, of about `PIECE` numbers."""
    whole = tensor if tensor.ndim else tensor.view(1)
    pieces: Sequence[torch.Tensor] = whole.split(max(1, PIECE * len(whole) // max(1, whole.numel())))
    return pieces
