"""Points at which a model is measured again and again: pictures with noise, timesteps and captions that stay the same.

The loss of a training step is mostly that of the noise level that it has drawn. At fixed points two states of a model
are compared one by one, and what is common to both falls out of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lib_trainer.ports import LoadedModel
from lib_trainer.training.captions import CaptionSource
from lib_trainer.training.loop import Batch, said
from lib_trainer.training.objective import Noised, Objective


@dataclass(frozen=True)
class FixedPoints:
    """A batch of them, one a picture of `batch`, whose latents are in `noised` by now."""

    batch: Batch
    noised: Noised

    @classmethod
    def covered(cls, batch: Batch, noise: torch.Tensor, timesteps: torch.Tensor, objective: Objective) -> FixedPoints:
        """A batch with given noise (B, C, H, W) at given timesteps (B,), unweighted."""
        return cls(batch, objective.covered(batch.latents, noise, timesteps, beside=batch.beside))

    @torch.no_grad()
    def answers(self, model: LoadedModel, captions: CaptionSource, dtype: torch.dtype) -> torch.Tensor:
        """(B, C, H, W) fp32 on the CPU: what the UNet says. The model is as it stands, without dropouts, and nothing is
        drawn from torch's own generators."""
        noised = self.noised.sent(model.device, dtype)
        return said(model, captions, self.batch, noised, dtype).float().cpu()
