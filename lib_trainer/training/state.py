"""What the steps to come hang on, besides the job, its pictures and the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lib_trainer.kinds.recipe import Recipe
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import restore


@dataclass
class TrainState:
    """The loop takes it and gives it back, after each step it tells of, as that step left it.

    `objective` says what the UNet is asked for. `noise` draws what is added to the pictures; `scaler` is loss scaling's
    (torch's GradScaler). Dropouts and the order of the pictures hang on the step's number alone.
    """

    recipe: Recipe
    optimizer: Optimizer
    scaler: Any
    noise: torch.Generator
    objective: Objective
    step: int = 0
    epoch: int = 0
    noise_after: torch.Tensor = field(init=False)
    """The generator's state as `step` left it: it may have drawn for the next one already."""

    objective_after: dict[str, Any] = field(init=False)
    """What `objective` had learned of the losses by then."""

    def __post_init__(self) -> None:
        self.noise_after, self.objective_after = self.noise.get_state(), self.objective.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors. Tensors are those that learn: copy them, or write them, before the next step."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "noise": self.noise_after,
            "objective": self.objective_after,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "recipe": self.recipe.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` of a run of the same job gave."""
        self.step, self.epoch, self.noise_after = state["step"], state["epoch"], state["noise"]
        self.objective_after = state["objective"]
        self.noise.set_state(self.noise_after)
        self.objective.load_state_dict(self.objective_after)
        restore(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.recipe.load_state_dict(state["recipe"])
