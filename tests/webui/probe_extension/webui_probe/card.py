"""What only a device with a memory of its own shows: where the model is held, and what a run takes and gives back."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from modules import devices, lowvram, sd_models

from lib_trainer.config import from_values
from lib_trainer.memory import forget_peak
from lib_trainer.training import run as run_module
from lib_trainer.training.memory_need import outlook
from lib_trainer.training.precision import resolve_precision
from lib_trainer.ui.train.memory_line import MemoryLine
from webui_probe import runs

CHECKS = ("held", "chosen_precision", "foreseen", "measured_run", "run_beside_another_program")
MIB = 1 << 20


def held() -> dict[str, Any]:
    """{part: [precision of its largest weight, device]} of the loaded model, and whether it is kept off the card."""
    model = sd_models.model_data.sd_model
    parts = {"unet": model.model.diffusion_model, "text": model.cond_stage_model, "vae": model.first_stage_model}
    largest = {part: max(module.parameters(), key=lambda one: one.numel()) for part, module in parts.items()}
    return {
        "device": str(devices.device),
        "kept away": bool(getattr(model, "lowvram", False)),
        "parts": {part: [str(one.dtype), one.device.type] for part, one in largest.items()},
    }


def chosen_precision(values: dict[str, Any]) -> str:
    """What a job trains in here."""
    return str(resolve_precision(from_values(values).training.precision, torch.device(devices.device)))


def foreseen(values: dict[str, Any]) -> dict[str, Any]:
    """What the page says of the job's memory, and the bytes of the card that it has reckoned with, by phase."""
    desk = runs.runner()
    found = outlook(from_values(values), desk.host)
    phases = {need.phase: need.total for need in found.forecast.phases} if found else {}
    return {"line": MemoryLine(desk).html(values), "phases": phases}


def _allocated() -> int:
    """Without what torch keeps for its products of matrices."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return int(torch.cuda.memory_allocated())


def measured_run(values: dict[str, Any], fault: str = "") -> dict[str, Any]:
    """A run without previews, with the bytes of tensors on the card before it, at its peaks and after it.

    What is drawn last is on the card although the model is kept off it; it is sent away before each count.
    """
    lowvram.send_everything_to_cpu()
    devices.torch_gc()
    before, peaks = _allocated(), []

    def noting(device: torch.device) -> None:
        peaks.append(int(torch.cuda.max_memory_allocated(device)))
        forget_peak(device)

    torch.cuda.reset_peak_memory_stats()
    with mock.patch.object(run_module, "forget_peak", noting):
        ended = runs.run(values, fault=fault)
    lowvram.send_everything_to_cpu()
    peaks.append(int(torch.cuda.max_memory_allocated()))
    return ended | {"before": before, "peak": max(peaks), "training": peaks[-1], "after": _allocated()}


def run_beside_another_program(values: dict[str, Any], left: float) -> dict[str, Any]:
    """`measured_run` where torch can have `left` MiB beside what it holds: the allocator itself refuses the rest."""
    with _little_memory(left):
        return measured_run(values)


@contextlib.contextmanager
def _little_memory(left: float) -> Iterator[None]:
    devices.torch_gc()
    whole = torch.cuda.get_device_properties(devices.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + left * MIB) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
