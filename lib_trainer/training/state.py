"""What the steps to come hang on, besides the job, its pictures and the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lib_trainer.kinds.recipe import Recipe
from lib_trainer.training.average import Average
from lib_trainer.training.course import Course
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import averaged, restore, to_average
from lib_trainer.training.scaling import LossScaler


@dataclass
class TrainState:
    """The loop takes it and gives it back, after each step it tells of, as that step left it.

    `objective` says what the UNet is asked for. `noise` draws what is added to the pictures; `scaler` scales the
    loss; `average` is a running one of what learns; `course` is that of the held-out loss. Dropouts and the order of
    the pictures hang on the step's number alone.
    """

    recipe: Recipe
    optimizer: Optimizer
    scaler: LossScaler
    noise: torch.Generator
    objective: Objective
    average: Average | None = None
    course: Course = field(default_factory=Course)
    step: int = 0
    epoch: int = 0
    failing: bool = False
    """The next step has failed: what is told of is the last one, and the device may be full."""

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
            "course": self.course.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
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
        self.course.load_state_dict(state["course"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    @contextlib.contextmanager
    def as_saved(self) -> Iterator[None]:
        """While this holds, what learns is what is saved and drawn: an average, where the optimizer or the job wants
        one. Afterwards it is bit for bit what it was."""
        with averaged(self.optimizer), contextlib.nullcontext() if self.average is None else self.average.shown():
            yield

    def settle(self) -> None:
        """After the last step: what learned becomes what is saved. Allocates next to nothing."""
        to_average(self.optimizer)
        if self.average is not None:
            self.average.settle()
