"""Learning-rate schedules against the formulas that others use."""

from __future__ import annotations

import math

import pytest
import torch

from lib_trainer.config import OptimizerConfig
from lib_trainer.training.schedules import SCHEDULES, LearningRates


def _factors(name: str, total: int, warmup: int = 0) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.5, "name": "unet"}])
    config = OptimizerConfig(schedule=name, warmup_steps=warmup)  # type: ignore[arg-type]
    rates = LearningRates(optimizer, config, total)
    seen = []
    for step in range(total):
        told = rates.set(step)
        assert told == {"unet": optimizer.param_groups[0]["lr"]}
        seen.append(told["unet"] / 0.5)
    return seen


def test_constant() -> None:
    assert _factors("constant", 7, warmup=5) == [1.0] * 7


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert _factors("cosine", 20) == pytest.approx(expected, abs=1e-9)
    assert SCHEDULES["cosine"](20, 20, 0) == pytest.approx(0, abs=1e-12)


def test_warmup_rises_in_a_line_and_stays() -> None:
    seen = _factors("constant_with_warmup", 12, warmup=5)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0] + [1.0] * 7)
    assert _factors("constant_with_warmup", 3, warmup=0) == [1.0] * 3
    assert all(math.isfinite(factor) and 0 < factor <= 1 for factor in seen)
