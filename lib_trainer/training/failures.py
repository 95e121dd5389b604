"""What went wrong in a run, in the user's terms."""

from __future__ import annotations

from lib_trainer.config import JobConfig
from lib_trainer.config.base import ADAPTERS
from lib_trainer.errors import TrainerError


class UnexpectedError(TrainerError):
    """A defect of ours or of the host's, carried to the user with what was kept."""


def what_to_lower(job: JobConfig) -> str:
    """The options that cost memory, with what they are now."""
    training, data = job.training, job.dataset
    lower = []
    if training.batch_size > 1:
        lower.append(f"training.batch_size (now {training.batch_size})")
    if not training.gradient_checkpointing:
        lower.append("turn on training.gradient_checkpointing")
    lower.append(f"dataset.width and dataset.height (now {data.width}×{data.height})")
    if job.network.kind in ADAPTERS:
        lower.append(f"network.rank (now {job.network.rank})")
    return ", ".join(lower)
