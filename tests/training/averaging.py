"""An optimizer that averages, as schedule-free ones do, and needs no package: its path is `optimizer.class_path`."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD

PATH = f"{__name__}.AveragingSGD"


class AveragingSGD(SGD):
    """Gradient descent; `eval` shows the mean of all places, and its own way back loses bits."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.learning = False

    @property
    def places(self) -> list[torch.Tensor]:
        return [place for group in self.param_groups for place in group["params"] if "mean" in self.state[place]]

    @torch.no_grad()
    def eval(self) -> None:
        if self.learning:
            for place in self.places:
                self.state[place]["away"] = place.clone()
                place.copy_(self.state[place]["mean"])
        self.learning = False

    @torch.no_grad()
    def train(self) -> None:
        for place in self.places:
            if "away" in self.state[place]:
                place.copy_(self.state[place].pop("away") * (1 + 1e-5))
        self.learning = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert self.learning, "it must be told that learning begins"
        super().step()
        for group in self.param_groups:
            for place in group["params"]:
                state = self.state[place]
                state["count"] = state.get("count", 0) + 1
                mean = state.get("mean", torch.zeros_like(place))
                state["mean"] = mean + (place - mean) / state["count"]
