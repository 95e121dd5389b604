"""Optimizers and learning-rate schedules, each in one visible registry."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from lib_trainer.config import OptimizerConfig
from lib_trainer.refusals import ConfigError

Groups = list[dict[str, Any]]


def adamw(groups: Groups, config: OptimizerConfig) -> Optimizer:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), fused into one kernel where torch can."""
    device = groups[0]["params"][0].device
    fused = device.type == "cuda" or (device.type == "cpu" and _cpu_has_fused_adamw())
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused or None)


def adamw_8bit(groups: Groups, config: OptimizerConfig) -> Optimizer:
    """AdamW with block-wise 8-bit state (Dettmers et al. 2022, arXiv:2110.02861)."""
    from bitsandbytes.optim import AdamW8bit  # heavy, and absent without an NVIDIA card

    optimizer: Optimizer = AdamW8bit(groups, weight_decay=config.weight_decay)
    return optimizer


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig], Optimizer]] = {"AdamW": adamw, "AdamW8bit": adamw_8bit}

ELEMENTWISE = frozenset({"AdamW"})
"""Those whose update of a number depends on that number alone, so that many tensors may be given as one."""


def step_unless(optimizer: Optimizer, bad: torch.Tensor) -> None:
    """One step, unless the scalar `bad` is true on the device: then parameters and state stay as they are.

    torch's fused kernels read the answer themselves, as they do for loss scaling; other optimizers are waited for.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not bool(bad):
            optimizer.step()
        return
    own: Any = optimizer
    own.grad_scale, own.found_inf = None, bad.float()
    try:
        optimizer.step()
    finally:
        del own.grad_scale, own.found_inf


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise `ConfigError` if the optimizer cannot run on the device."""
    if name != "AdamW8bit":
        return
    if device.type != "cuda":
        raise ConfigError("optimizer.no_card", field="optimizer.name")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("optimizer.no_bitsandbytes", field="optimizer.name")


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
        return {group["name"]: group["lr"] for group in self._optimizer.param_groups}


def _cpu_has_fused_adamw() -> bool:
    """torch 2.4 brought the fused CPU kernel; earlier ones refuse `fused=True` there."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return version >= (2, 4) and "fused" in inspect.signature(torch.optim.AdamW).parameters
