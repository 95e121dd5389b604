"""What a UNet is told beside text and time, as one vector.

SDXL (Podell et al. 2023, arXiv:2307.01952, section 2.2): the pooled vector of the whole caption, and behind it 256
numbers for each of six sizes, cosines first.
"""

from __future__ import annotations

import math

import torch

from lib_trainer.ports import Conditioning

SINES = 256
LONGEST_PERIOD = 10_000


def vector_of(told: Conditioning) -> torch.Tensor | None:
    """(B, P + 6·256) in the pooled vector's precision; None where the family's UNet reads none."""
    if told.pooled is None or told.sizes is None:
        return None
    sines = sines_of(told.sizes.to(told.pooled.device)).to(told.pooled.dtype)
    return torch.cat([told.pooled, sines], dim=1)


def sines_of(numbers: torch.Tensor) -> torch.Tensor:
    """(B, N) → (B, N·256) fp32: cosines and sines of each number at 128 frequencies, from 1 down to 1/10000 (Vaswani et
    al. 2017, arXiv:1706.03762, section 3.5)."""
    half = SINES // 2
    places = torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = numbers.float().unsqueeze(-1) * torch.exp(-math.log(LONGEST_PERIOD) * places / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
