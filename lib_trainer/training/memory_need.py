"""What a job needs of its device's memory, reckoned before anything is loaded, and what is said where that is short.

A reckoning is no refusal: it may be wrong, a picture that is being drawn will be done soon, and what does not fit ends
in a sentence of its own. So a job that seems too large is started all the same, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lib_trainer.config import JobConfig
from lib_trainer.memory import free_bytes
from lib_trainer.ports import Host, Part
from lib_trainer.training.precision import resolve_precision

GIB = 2**30
PER_PICTURE = 1.1 * GIB / 860e6 / (512 * 512)
"""Bytes of activations for each UNet parameter, picture and pixel in half precision, as counted on SD 1.5 at 512²."""
CHECKPOINTED = 0.25
"""Share of the activations that gradient checkpointing leaves."""


def memory_need(job: JobConfig, counts: Mapping[Part, int], device: torch.device) -> int | None:
    """Bytes on the device beside the loaded model, or None for a kind that is not reckoned.

    `counts` are the parameters of each part. A whole checkpoint: the fp32 copy that learns, its gradient, the
    optimizer's states and the average; autocast's half-precision weights, which do not grow with the batch; and the
    activations, which do. What waits in the computer's memory meanwhile (the originals of a GPU) is taken off.
    """
    if job.network.kind != "checkpoint":
        return None
    tuning, unet = job.finetune, counts.get("unet", 0)
    trained = (unet if tuning.unet_lr else 0) + (counts.get("te1", 0) if tuning.text_encoder_lr else 0)
    states = 2 if job.optimizer.name.endswith("8bit") else 8
    half = resolve_precision(job.training.precision, device) is not torch.float32
    pixels = job.dataset.width * job.dataset.height * job.training.batch_size
    activations = PER_PICTURE * unet * pixels * (1 if half else 2)
    if job.training.gradient_checkpointing:
        activations *= CHECKPOINTED
    each = 4 + 4 + states + (4 if tuning.ema else 0) + (2 if half else 0) - (0 if device.type == "cpu" else 2)
    return int(trained * each + activations)


def memory_warning(job: JobConfig, host: Host) -> str | None:
    """One sentence where a job seems not to fit what is free now."""
    device = host.device()
    needed, free = memory_need(job, host.parameter_counts(), device), free_bytes(device)
    if needed is None or needed <= free:
        return None
    return (
        f"Fine-tuning this checkpoint needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free: if it runs "
        "out of memory, train a LoRA, or leave out the text encoder (finetune.text_encoder_lr = 0) and EMA, take "
        "AdamW8bit, a smaller training.batch_size and training.gradient_checkpointing."
    )
