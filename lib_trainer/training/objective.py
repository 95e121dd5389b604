"""The diffusion objective: what noise is added and what the UNet is asked to predict.

Ho et al. 2020 (arXiv:2006.11239, eq. 4 and 14): x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε, loss ‖target − prediction‖².
Salimans & Ho 2022 (arXiv:2202.00512, appendix D): v = √ᾱ_t·ε − √(1−ᾱ_t)·x₀.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from lib_trainer.ports import NoiseSchedule


@dataclass(frozen=True)
class Noised:
    """`latents` (B, C, H, W) at `timesteps` (B,) int64, and the `target` (B, C, H, W) that belongs to them; fp32."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


def draw_noised(latents: torch.Tensor, schedule: NoiseSchedule, generator: torch.Generator) -> Noised:
    """Noise clean latents (B, C, H, W), fp32, on the CPU, at uniformly drawn timesteps.

    All randomness comes from a CPU generator, so that every device and host sees the same numbers.
    """
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(len(schedule.alphas_cumprod), (latents.shape[0],), generator=generator)
    alpha_bar = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    target = noise if schedule.prediction == "epsilon" else signal * noise - sigma * latents
    return Noised(signal * latents + sigma * noise, timesteps, target)


def loss_of(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error in fp32 over everything, a scalar. `weights` (B,) are factors on each picture's own."""
    if weights is None:
        return F.mse_loss(prediction.float(), target)
    errors = F.mse_loss(prediction.float(), target, reduction="none").flatten(1).mean(1)
    return (errors * weights.to(errors.device)).mean()
