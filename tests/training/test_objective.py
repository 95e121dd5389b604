"""The objective and the schedule against diffusers' own training computation."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.nn import functional as F

from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.ports import NoiseSchedule
from lib_trainer.training.objective import Noised, Objective
from tests.support import scaled_linear

SHAPE = (16, 4, 8, 8)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
KINDS: list[tuple[Literal["epsilon", "v"], bool]] = [("epsilon", False), ("v", False), ("v", True)]


def theirs(prediction: str, zero_terminal: bool) -> Any:
    from diffusers import DDPMScheduler

    said = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=said,
        rescale_betas_zero_snr=zero_terminal,
    )


@pytest.mark.parametrize(("prediction", "zero_terminal"), KINDS)
def test_noise_and_target_are_diffusers(prediction: Literal["epsilon", "v"], zero_terminal: bool) -> None:
    scheduler = theirs(prediction, zero_terminal)
    objective = Objective(NoiseSchedule(scaled_linear(), prediction, zero_terminal))
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    noised = objective.noised(latents, torch.Generator().manual_seed(2))
    same = torch.Generator().manual_seed(2)
    noise = torch.randn(latents.shape, generator=same)
    timesteps = torch.randint(1000, (16,), generator=same)
    assert torch.equal(noised.timesteps, timesteps) and noised.timesteps.dtype is torch.int64
    torch.testing.assert_close(noised.latents, scheduler.add_noise(latents, noise, timesteps), **CLOSE)
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(noised.target, target, **CLOSE)
    assert noised.latents.dtype is noised.target.dtype is torch.float32
    said = torch.randn(SHAPE, generator=same)
    torch.testing.assert_close(objective.loss(said, noised), F.mse_loss(said, target), **CLOSE)


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_the_schedule_in_use_is_diffusers(zero_terminal: bool) -> None:
    from diffusers.training_utils import compute_snr

    scheduler = theirs("v", zero_terminal)
    schedule = NoiseSchedule(scaled_linear(), "v", zero_terminal)
    torch.testing.assert_close(schedule.used.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert schedule.used.dtype is schedule.snr.dtype is torch.float64
    assert float(schedule.used[0]) == pytest.approx(float(scaled_linear()[0]), rel=1e-12), "the first one stays"
    assert (float(schedule.used[-1]) == 0) is zero_terminal
    snr = compute_snr(scheduler, torch.arange(1000)).double()
    torch.testing.assert_close(schedule.snr[:-1], snr[:-1], rtol=1e-3, atol=1e-6)  # theirs is of fp32
    assert (float(schedule.snr[-1]) == 0) is zero_terminal


def test_timesteps_are_uniform_over_the_whole_schedule() -> None:
    objective = Objective(NoiseSchedule(scaled_linear(), "epsilon"))
    drawn = objective.noised(torch.zeros(20000, 1, 1, 1), torch.Generator().manual_seed(0)).timesteps
    counts = torch.bincount(drawn, minlength=1000)
    assert len(counts) == 1000 and int(drawn.min()) == 0 and int(drawn.max()) == 999
    tenths = counts.view(10, 100).sum(1).double() / 20000
    assert float((tenths - 0.1).abs().max()) < 0.01


def test_the_loaded_schedule_is_diffusers(diffusers_model: DiffusersModel) -> None:
    schedule = diffusers_model.schedule
    assert schedule.prediction == "epsilon" and schedule.alphas_cumprod.dtype is torch.float64
    torch.testing.assert_close(
        schedule.alphas_cumprod.float(), theirs("epsilon", False).alphas_cumprod, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(schedule.alphas_cumprod, scaled_linear(), rtol=1e-12, atol=1e-15)


def test_the_loss_is_the_mean_square_in_fp32() -> None:
    prediction, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    objective = Objective(NoiseSchedule(scaled_linear(), "epsilon"))
    noised = Noised(target, torch.zeros(2, dtype=torch.int64), target)
    expected = ((prediction.double() - target.double()) ** 2).mean()
    assert objective.loss(prediction, noised).item() == pytest.approx(expected.item(), rel=1e-6)
    half = objective.loss(prediction.bfloat16(), noised)
    assert half.dtype is torch.float32
