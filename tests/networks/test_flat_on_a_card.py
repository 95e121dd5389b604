"""What only a card shows of a training step: the fused way against the plain one, no waiting, and peak memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lib_trainer.config import OptimizerConfig
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import PictureSize, TrainingState
from lib_trainer.training.captions import LiveCaptions
from lib_trainer.training.loop import Batch, LoopOptions, StepBatches, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.state import TrainState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA card"),
]
SIZE = PictureSize((128, 128), (0, 0), (128, 128))


@contextlib.contextmanager
def on_a_card(dtype: torch.dtype, *, flat: bool, rank: int = 8) -> Iterator[tuple[Any, list[Any]]]:
    from bench.random_models import build_model

    model = build_model("mini", torch.device("cuda"))
    targets = [target for target in model.adaptable_modules() if target.group == "transformer"]
    network = LoraNetwork.create(targets, rank, rank / 2, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in network:
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    leaves = network.flatten(list(network), whole=True) if flat else list(network.parameters())
    with model.training(TrainingState(dtype, False, True)), network.applied():
        yield model, leaves


def batch() -> StepBatches:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    return StepBatches(1, [Batch(latents, ["a red circle", "a blue square"], [SIZE, SIZE])])


class NoRecipe(Recipe):
    """What learns is the test's own."""


def run(model: Any, leaves: list[Any], dtype: torch.dtype, steps: int, told: list[Any]) -> None:
    config = OptimizerConfig(schedule="constant")
    optimizer = make_optimizer([{"params": leaves, "lr": 1e-4, "name": "unet"}], config)
    options, rates = LoopOptions(steps, dtype, 1.0), LearningRates(optimizer, config, steps)
    scaler, noise = loss_scaler(model.device, dtype), torch.Generator().manual_seed(3)
    state = TrainState(NoRecipe(), optimizer, scaler, noise, Objective(model.schedule))
    drawn = iter([batch()] * steps)
    train(model, LiveCaptions(model, 1, 75), drawn, state, rates, options, told.append, lambda: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_fused_way_is_the_plain_way(dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no bf16")
    curves = []
    for flat in (True, False):
        with on_a_card(dtype, flat=flat) as (model, leaves):
            told: list[Any] = []
            run(model, leaves, dtype, 20, told)
            curves.append(torch.tensor([done.loss for done in told]))
    assert len(curves[0]) == 20 and bool(curves[0].isfinite().all())
    torch.testing.assert_close(*curves, rtol=0.02, atol=0.0)


def test_nothing_in_a_step_waits_for_the_card() -> None:
    with on_a_card(torch.float16, flat=True) as (model, leaves):
        told: list[Any] = []
        run(model, leaves, torch.float16, 3, told)  # whatever is made once is there
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(model, leaves, torch.float16, 3, told)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(told) == 6


def test_the_fused_way_takes_no_more_memory() -> None:
    peaks = []
    for flat in (True, False):
        with on_a_card(torch.float16, flat=flat, rank=32) as (model, leaves):
            run(model, leaves, torch.float16, 2, [])
            torch.cuda.reset_peak_memory_stats()
            run(model, leaves, torch.float16, 2, [])
            peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] <= 1.02 * peaks[1]
