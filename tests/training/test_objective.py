"""The objective and the schedule against diffusers' own."""

from __future__ import annotations

import pytest
import torch

from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.ports import NoiseSchedule
from lib_trainer.training.objective import draw_noised, loss_of
from tests.support import scaled_linear


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_noise_and_target_are_diffusers(prediction: str) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule = NoiseSchedule(scaled_linear(), prediction)  # type: ignore[arg-type]
    latents = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noised = draw_noised(latents, schedule, torch.Generator().manual_seed(2))
    same = torch.Generator().manual_seed(2)
    noise = torch.randn(latents.shape, generator=same)
    timesteps = torch.randint(1000, (16,), generator=same)
    assert torch.equal(noised.timesteps, timesteps) and noised.timesteps.dtype is torch.int64
    torch.testing.assert_close(noised.latents, theirs.add_noise(latents, noise, timesteps), rtol=1e-4, atol=1e-5)
    target = noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(noised.target, target, rtol=1e-4, atol=1e-5)
    assert noised.latents.dtype is noised.target.dtype is torch.float32


def test_timesteps_are_uniform_over_the_whole_schedule() -> None:
    schedule = NoiseSchedule(scaled_linear(), "epsilon")
    drawn = draw_noised(torch.zeros(20000, 1, 1, 1), schedule, torch.Generator().manual_seed(0)).timesteps
    counts = torch.bincount(drawn, minlength=1000)
    assert len(counts) == 1000 and int(drawn.min()) == 0 and int(drawn.max()) == 999
    tenths = counts.view(10, 100).sum(1).double() / 20000
    assert float((tenths - 0.1).abs().max()) < 0.01


def test_the_loaded_schedule_is_diffusers(diffusers_model: DiffusersModel) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    schedule = diffusers_model.schedule
    assert schedule.prediction == "epsilon" and schedule.alphas_cumprod.dtype is torch.float64
    torch.testing.assert_close(schedule.alphas_cumprod.float(), theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(schedule.alphas_cumprod, scaled_linear(), rtol=1e-12, atol=1e-15)


def test_the_loss_is_the_mean_square_in_fp32() -> None:
    prediction, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    expected = ((prediction.double() - target.double()) ** 2).mean()
    assert loss_of(prediction, target).item() == pytest.approx(expected.item(), rel=1e-6)
    half = loss_of(prediction.bfloat16(), target)
    assert half.dtype is torch.float32
