"""A running average of what learns (EMA), for every kind of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


class Average:
    """Average weights of a run: θ̄ ← d·θ̄ + (1 − d)·θ after each step that learned (Polyak & Juditsky 1992).

    The decay of step n is at most (1 + n) / (10 + n), so that early weights are forgotten soon.
    """

    def __init__(self, learned: Sequence[nn.Parameter], decay: float) -> None:
        self._learned, self._decay, self._steps = list(learned), decay, 0
        self.values = [parameter.detach().clone() for parameter in self._learned]

    @torch.no_grad()
    def after_step(self) -> None:
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for average, parameter in zip(self.values, self._learned, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While this holds, the parameters are the average, and afterwards bit for bit what they were: both change
        places, one tensor at a time."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.values, self._learned, strict=True):
            learned = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(learned)

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
