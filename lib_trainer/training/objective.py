"""The diffusion objective: what noise is added, what the UNet is asked to predict, and how far off it is.

Ho et al. 2020 (arXiv:2006.11239, eq. 4 and 14): x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε, loss ‖target − prediction‖².
Salimans & Ho 2022 (arXiv:2202.00512, appendix D): v = √ᾱ_t·ε − √(1−ᾱ_t)·x₀.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from lib_trainer.ports import NoiseSchedule
from lib_trainer.transfer import sent


@dataclass(frozen=True)
class Noised:
    """A batch as the UNet is shown it: `latents` (B, C, H, W) at `timesteps` (B,) int64.

    `target` (B, C, H, W) is what it is to say; `weights` (B,) are factors on each picture's loss, None where all of
    them are 1. Numbers are fp32.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor | None = None

    def sent(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Noised:
        """The same on a device, which is not waited for; `latents` as the UNet reads them."""
        weights = None if self.weights is None else sent(self.weights, device)
        return replace(
            self,
            latents=sent(self.latents.to(dtype), device),
            timesteps=sent(self.timesteps, device),
            target=sent(self.target, device),
            weights=weights,
        )


class Objective:
    """What a run asks of the UNet. All randomness comes from a CPU generator, so that every device and host sees the
    same numbers."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def noised(self, latents: torch.Tensor, generator: torch.Generator, weights: torch.Tensor | None = None) -> Noised:
        """Noise clean latents (B, C, H, W), fp32, on the CPU, at uniformly drawn timesteps.

        `weights` (B,) are factors on the pictures' losses beside those of the objective.
        """
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(self.schedule.used), (latents.shape[0],), generator=generator)
        alpha_bar = self.schedule.used[timesteps].view(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        target = noise if self.schedule.prediction == "epsilon" else signal * noise - sigma * latents
        return Noised(signal * latents + sigma * noise, timesteps, target, weights)

    def loss(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """The mean over everything in fp32, a scalar, of what the UNet has said of `noised`, on its device."""
        if noised.weights is None:
            return F.mse_loss(prediction.float(), noised.target)
        errors = F.mse_loss(prediction.float(), noised.target, reduction="none").flatten(1).mean(1)
        return (errors * noised.weights).mean()
