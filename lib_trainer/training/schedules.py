"""Learning-rate schedules: pure functions in one visible registry, and what sets a run's rates by them.

Each is the factor on the rate by the share of a run that is done, without its warm-up; a floor lifts all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lib_trainer.config import JobConfig, OptimizerConfig
from lib_trainer.refusals import ConfigError
from lib_trainer.training.optimizers import Beginning, effective_rates, known

Schedule = Callable[[float, OptimizerConfig], float]
"""From the share that is done, 0 to 1, to a factor, 1 to 0."""


def constant(done: float, config: OptimizerConfig) -> float:
    return 1.0


def linear(done: float, config: OptimizerConfig) -> float:
    """diffusers' and transformers' `linear`."""
    return 1 - done


def cosine(done: float, config: OptimizerConfig) -> float:
    """Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts; diffusers' `cosine`."""
    return 0.5 * (1 + math.cos(math.pi * done))


def cosine_with_restarts(done: float, config: OptimizerConfig) -> float:
    """The same paper's equation 5 with cycles of one length; diffusers' `cosine_with_restarts`."""
    return 0.5 * (1 + math.cos(math.pi * (config.cycles * done % 1))) if done < 1 else 0.0


def polynomial(done: float, config: OptimizerConfig) -> float:
    """diffusers' `polynomial` with an end at 0."""
    return float((1 - done) ** config.power)


def warmup_stable_decay(done: float, config: OptimizerConfig) -> float:
    """Constant, and half a cosine at the end: Hu et al. 2024, arXiv:2404.06395; transformers' `warmup_stable_decay`."""
    begins = 1 - config.decay_share
    return 1.0 if done <= begins else 0.5 * (1 + math.cos(math.pi * (done - begins) / config.decay_share))


def rex(done: float, config: OptimizerConfig) -> float:
    """Reflected exponential: Chen et al. 2021, arXiv:2107.04197, section 3."""
    return (1 - done) / (0.5 + 0.5 * (1 - done))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "warmup_stable_decay": warmup_stable_decay,
    "rex": rex,
}


def schedule_name(config: OptimizerConfig) -> str:
    """The schedule that a job has: an optimizer that averages needs none."""
    return "constant" if known(config).averages else config.schedule


def warmup_steps(config: OptimizerConfig, total: int) -> int:
    """Steps of the rise at the beginning of a run of `total` steps; below 1 the option is a share of them."""
    return round(config.warmup * total) if config.warmup < 1 else round(config.warmup)


def factor(config: OptimizerConfig, step: int, total: int) -> float:
    """On the rates of the step after `step` others, 0 ≤ step < total.

    The rise is linear and reaches 1 in its last step; none of its steps is lost at 0.
    """
    rise, name = warmup_steps(config, total), schedule_name(config)
    if step < rise:
        return (step + 1) / rise
    value = SCHEDULES[name](min(1.0, (step - rise) / max(1, total - rise)), config)
    floor = 0.0 if name == "constant" else config.floor
    return floor + (1 - floor) * value if floor else value


def check_schedule(job: JobConfig, total: int, base_steps: int = 0) -> None:
    """Raise `ConfigError` where the warm-up leaves no step of a run, or of the part before a difference, or where there
    are more cycles than steps."""
    shortest = min(total - base_steps, base_steps or total)
    cycles = job.optimizer.cycles
    if schedule_name(job.optimizer) == "cosine_with_restarts" and cycles > shortest:
        raise ConfigError("schedule.cycles", field="optimizer.cycles", cycles=cycles, steps=shortest)
    if job.optimizer.warmup and warmup_steps(job.optimizer, shortest) >= shortest:
        raise ConfigError("schedule.warmup", field="optimizer.warmup", warmup=job.optimizer.warmup, steps=shortest)


class LearningRates:
    """Sets each group's rate before a step: its base rate times the schedule's factor.

    torch's own schedulers count `optimizer.step` calls, which loss scaling may skip; this one is told the step.
    """

    def __init__(self, optimizer: Optimizer, config: OptimizerConfig, total_steps: int, base_steps: int = 0) -> None:
        """`base_steps` at the beginning have a schedule of their own (the picture before a difference), and what comes
        after them an optimizer that is as new: rates that it finds itself, and averages, are of what learns."""
        self._optimizer, self._config, self._total = optimizer, config, total_steps
        self._base_steps = base_steps
        self._beginning = Beginning(optimizer) if base_steps else None
        self._base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, steps_done: int) -> dict[str, float]:
        """Set the rates for the next step; returns what steps are scaled by then, by group name."""
        if self._beginning is not None and steps_done == self._base_steps:
            self._beginning.again(self._optimizer)
        now = factor(self._config, *self._within(steps_done))
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * now
        return effective_rates(self._optimizer)

    def done(self, steps_done: int) -> float:
        """The share of its part of the run that is done when the next step begins."""
        done, length = self._within(steps_done)
        return done / length

    def _within(self, steps_done: int) -> tuple[int, int]:
        """Steps that are done of a part, and its length."""
        if steps_done < self._base_steps:
            return steps_done, self._base_steps
        return steps_done - self._base_steps, self._total - self._base_steps


def told(config: OptimizerConfig, total: int) -> dict[str, Any]:
    """What a file says of it, in sd-scripts' names."""
    name, rise = schedule_name(config), warmup_steps(config, total)
    if name == "constant" and rise:
        name = "constant_with_warmup"
    return {"ss_lr_scheduler": name, "ss_lr_warmup_steps": rise}
