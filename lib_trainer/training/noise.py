"""What is drawn for a batch: noise, in which colours, and at which timesteps. Everything comes from a CPU generator.

The first two draws are always the same, plain noise and then the timesteps (uniform ones by whole numbers): an option
that draws more does so afterwards.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lib_trainer.config import NoiseConfig


def draw_timesteps(config: NoiseConfig, total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int64 in [min_timestep, max_timestep), of a schedule with `total` steps.

    Logit-normal (Esser et al. 2024, arXiv:2403.03206, section 3.1): σ(location + spread·n), n normal. Sigmoid
    (OneTrainer): with a density as σ(spread·(u − ½ − location)). Shift (the same paper, eq. 23): s·u/(1 + (s−1)·u).
    """
    low, high = config.min_timestep, min(config.max_timestep, total)
    if config.distribution == "uniform" and config.shift == 1:
        return torch.randint(low, high, (count,), generator=generator)
    share = _shares(config, count, generator).clamp(0, 1)
    share = config.shift * share / (1 + (config.shift - 1) * share)
    chosen: torch.Tensor = low + (share * (high - low)).floor().long()
    return chosen.clamp(max=high - 1)


def _shares(config: NoiseConfig, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) float64 in [0, 1], before the shift."""
    if config.distribution == "logit_normal":
        drawn = torch.randn(count, generator=generator, dtype=torch.float64)
        return torch.sigmoid(config.location + config.spread * drawn)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    if config.distribution == "uniform" or config.spread == 0:
        return drawn
    # the inverse of the density's integral, which is softplus(spread·(u − ½ − location)) up to a factor and a constant
    ends = torch.tensor([-0.5 - config.location, 0.5 - config.location], dtype=torch.float64) * config.spread
    first, last = F.softplus(ends)
    whole = first + drawn * (last - first)
    found: torch.Tensor = (whole + torch.log(-torch.expm1(-whole))) / config.spread + 0.5 + config.location
    return found


def coloured(
    noise: torch.Tensor, latents: torch.Tensor, config: NoiseConfig, generator: torch.Generator
) -> torch.Tensor:
    """Plain noise (B, C, H, W) with an offset and coarser noise, as the options say; itself where they say nothing."""
    if config.offset > 0:
        noise = noise + _offset(latents, config, generator)
    if config.pyramid_iterations > 0:
        noise = _pyramid(noise, config, generator)
    return noise


def _offset(latents: torch.Tensor, config: NoiseConfig, generator: torch.Generator) -> torch.Tensor:
    """(B, C, 1, 1): one normal draw for each picture and channel, times the offset.

    github.com/crosslabs (N. Guttenberg, "Diffusion with offset noise", 2023); sd-scripts' random and adaptive forms.
    """
    count, channels = latents.shape[:2]
    drawn = torch.randn((count, channels, 1, 1), generator=generator)
    strength = torch.full((count, 1, 1, 1), config.offset)
    if config.offset_random:
        strength = strength * torch.rand((count, 1, 1, 1), generator=generator)
    if config.offset_adaptive > 0:
        strength = strength + config.offset_adaptive * latents.mean(dim=(2, 3), keepdim=True).abs()
    return drawn * strength


def _pyramid(noise: torch.Tensor, config: NoiseConfig, generator: torch.Generator) -> torch.Tensor:
    """Coarser noise added, each level smaller by a ratio drawn from 2 to 4, and the whole scaled to a deviation of 1.

    J. Whitaker, "Multi-resolution noise for diffusion model training", 2023. Each picture is scaled by its own
    deviation: what it is shown must not hang on its neighbours in the batch.
    """
    count, channels, height, width = noise.shape
    for level in range(config.pyramid_iterations):
        ratio = float(torch.rand((), generator=generator, dtype=torch.float64)) * 2 + 2
        size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        coarse = torch.randn((count, channels, *size), generator=generator)
        noise = noise + F.interpolate(coarse, (height, width), mode="bilinear") * config.pyramid_discount**level
        if 1 in size:
            break
    return noise / noise.flatten(1).std(1).view(-1, 1, 1, 1)


def perturbed(noise: torch.Tensor, config: NoiseConfig, generator: torch.Generator) -> torch.Tensor:
    """The noise that a picture is covered with, where it is more than what is asked for (Ning et al. 2023,
    arXiv:2301.11706): noise + γ·fresh noise."""
    if config.perturbation == 0:
        return noise
    strength = torch.full((noise.shape[0], 1, 1, 1), config.perturbation)
    fresh = torch.randn(noise.shape, generator=generator)
    if config.perturbation_random:
        strength = strength * torch.rand(strength.shape, generator=generator)
    return noise + strength * fresh
