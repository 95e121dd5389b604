"""How much each place of a picture counts in its loss: what a job makes of masks."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_trainer.config import JobConfig, MasksConfig
from lib_trainer.dataset.masks import Masks
from lib_trainer.dataset.scan import Scan
from lib_trainer.refusals import ConfigError, few


def masks_of(job: JobConfig) -> Masks:
    """Where a job's masks are. Raises `ConfigError` for a folder that is none."""
    folder = job.masks.folder.strip() if job.masks.source == "file" else ""
    found = Masks(job.masks.source, Path(folder).expanduser() if folder else None)
    found.check()
    return found


def check_masks(job: JobConfig, scan: Scan) -> None:
    """Raise `ConfigError` where masks are asked for and no picture has one."""
    if job.masks.source == "none" or any(sample.mask is not None for sample in scan.samples):
        return
    if job.masks.source == "alpha":
        raise ConfigError("masks.none_transparent", field="masks.source")
    if scan.lone_masks:
        raise ConfigError("masks.none_matches", field="masks.source", names=few(scan.lone_masks, 3))
    raise ConfigError("masks.none_there", field="masks.source")


def loss_weights(masks: torch.Tensor, config: MasksConfig) -> torch.Tensor:
    """(B, 1, h, w) factors on errors, of masks from 0 to 1: 1 inside, `outside` elsewhere.

    Normalised each picture's are divided by their mean, so that its loss is the mean error of what is inside. A mask
    without anything in it is without weight, however it is normalised.
    """
    weights = config.outside + (1 - config.outside) * masks
    if not config.normalise:
        return weights
    mean = weights.flatten(1).mean(1).view(-1, 1, 1, 1)
    return torch.where(mean > 0, weights / mean.clamp(min=1e-12), 0.0)
