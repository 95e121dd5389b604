"""How much each noise level counts, and how errors of each are judged: tables over the schedule's timesteps.

All of them are made of the signal-to-noise ratios of the schedule in use, which is 0 at the last step of models with
zero terminal SNR.
"""

from __future__ import annotations

import math

import torch

from lib_trainer.config import LossConfig
from lib_trainer.ports import NoiseSchedule

LARGEST_SNR = 1000.0
"""Beyond it debiasing goes no further: at the first step there is nearly no noise (sd-scripts' bound)."""

LEVELS = 40
"""Groups of neighbouring noise levels whose losses are told apart."""

MEMORY = 0.02
"""Least share of a level's newest loss in its mean."""

TRUST = 8.0
"""Losses of a level by which half is known of it."""


def level_weights(config: LossConfig, schedule: NoiseSchedule) -> torch.Tensor | None:
    """(T,) fp32 factors on the loss by timestep; None where all are 1.

    Min-SNR (Hang et al. 2023, arXiv:2303.09556, section 3.4): min(SNR, γ)/SNR for noise, min(SNR, γ)/(SNR+1) for v.
    Debiased estimation (Yu et al. 2023, arXiv:2310.08442): 1/√SNR for noise; for v 1/(SNR+1) or its root. v as if it
    were noise: SNR/(SNR+1).
    """
    snr, v = schedule.snr, schedule.prediction == "v"
    if config.weighting == "none":
        return None
    if config.weighting == "min_snr":
        least = snr.clamp(max=config.min_snr_gamma)
        # for noise the limit at SNR 0 is 1
        weights = least / (snr + 1) if v else torch.where(snr > 0, least / snr.clamp(min=1e-300), 1.0)
        return weights.float()
    snr = snr.clamp(max=LARGEST_SNR)
    if config.weighting == "like_noise":
        return (snr / (snr + 1)).float()
    if not v:
        return snr.clamp(min=1 / LARGEST_SNR).rsqrt().float()
    return (1 / (snr + 1)).float() if config.debiased_v == "inverse" else (snr + 1).rsqrt().float()


def huber_thresholds(config: LossConfig, schedule: NoiseSchedule) -> torch.Tensor | None:
    """(T,) fp32: the error from which on a loss is straight; None for losses that have none.

    Khrapov et al. 2024, arXiv:2403.16728, "Improving diffusion models' data-corruption resistance using scheduled
    pseudo-Huber loss". By signal to noise: (1−c)/(1+σ)² + c with σ = √((1−ᾱ)/ᾱ); exponential: c^(t/T).
    """
    if config.type not in ("huber", "smooth_l1"):
        return None
    c, total = config.huber_c, len(schedule.used)
    if config.huber_schedule == "constant":
        found = torch.full((total,), c, dtype=torch.float64)
    elif config.huber_schedule == "exponential":
        found = torch.exp(torch.arange(total, dtype=torch.float64) * (math.log(c) / total))
    else:
        found = (1 - c) / (1 + schedule.snr.rsqrt()) ** 2 + c  # σ is infinite at SNR 0, and c is left
    return (found * config.huber_scale).float()


class LearnedWeights:
    """Factors that make all noise levels pull alike: each level's loss is divided by its running mean.

    The binned form of EDM2's learned weights (Karras et al. 2024, arXiv:2312.02696, appendix B.5), whose optimum is the
    mean loss of a level too. The factors' mean stays near 1, so that clipping and other weights keep their meaning. The
    numbers live on the device of the losses: nothing waits for them.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.means, self.counts = torch.zeros(LEVELS), torch.zeros(LEVELS)

    def factors(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) fp32, of what has been seen so far."""
        self._move(timesteps.device)
        seen = self.counts > 0
        usual = (self.means * seen).sum() / seen.sum().clamp(min=1)
        known = self.counts / (self.counts + TRUST)  # a level that was seen a few times is taken for nearly usual
        factors = torch.where(seen, usual / self.means.clamp(min=1e-12), 1.0) ** known
        return factors[self._levels(timesteps)]

    def see(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Take in the losses (B,) of a batch; those that are not finite are passed by."""
        levels, losses = self._levels(timesteps), losses.detach().float()
        good = losses.isfinite()
        count = torch.zeros_like(self.counts).index_add_(0, levels, good.float())
        total = torch.zeros_like(self.means).index_add_(0, levels, torch.where(good, losses, 0.0))
        share = (count / (self.counts + count).clamp(min=1)).clamp(min=MEMORY)
        newest = total / count.clamp(min=1)
        self.means = torch.where(count > 0, self.means + share * (newest - self.means), self.means)
        self.counts = self.counts + count

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Plain tensors, which later losses do not change."""
        return {"means": self.means, "counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.means, self.counts = state["means"].clone(), state["counts"].clone()

    def _levels(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps * LEVELS // self._total

    def _move(self, device: torch.device) -> None:
        if self.means.device != device:
            self.means, self.counts = self.means.to(device), self.counts.to(device)
