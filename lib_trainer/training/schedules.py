"""Learning-rate schedules in one visible registry."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer

from lib_trainer.config import OptimizerConfig
from lib_trainer.training.optimizers import effective_rates


def _constant(step: int, total: int, warmup: int) -> float:
    return 1.0


def _cosine(step: int, total: int, warmup: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def _constant_with_warmup(step: int, total: int, warmup: int) -> float:
    return min(1.0, (step + 1) / max(1, warmup))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "constant_with_warmup": _constant_with_warmup,
}
"""Factor on the learning rate by (steps done, steps in all, warm-up steps)."""


class LearningRates:
    """Sets each group's rate before a step: its base rate times the schedule's factor.

    torch's own schedulers count `optimizer.step` calls, which loss scaling may skip; this one is told the step.
    """

    def __init__(self, optimizer: Optimizer, config: OptimizerConfig, total_steps: int, base_steps: int = 0) -> None:
        """`base_steps` at the beginning have a schedule of their own (the picture before a difference)."""
        self._optimizer, self._total, self._warmup = optimizer, total_steps, config.warmup_steps
        self._base_steps = base_steps
        self._factor = SCHEDULES[config.schedule]
        self._base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, steps_done: int) -> dict[str, float]:
        """Set the rates for the next step; returns them by group name."""
        start = 0 if steps_done < self._base_steps else self._base_steps
        length = self._base_steps if steps_done < self._base_steps else self._total - self._base_steps
        factor = self._factor(steps_done - start, length, self._warmup)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor
        return effective_rates(self._optimizer)
