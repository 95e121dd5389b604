"""Full fine-tuning and DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): the model's own weights, on copies of them.

The loaded model keeps its weights. While the run goes, its modules hold fp32 copies that learn, and the originals wait
beside them (on the CPU, if the model is on a GPU); on leaving they are put back as they were, the same objects.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.errors import ModelError
from lib_trainer.networks.difference import lora_of_differences
from lib_trainer.networks.formats.checkpoint_file import read_checkpoint, write_checkpoint
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.ports import LoadedModel, OwnParameter, Part
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.recipes import Recipe

logger = logging.getLogger(__name__)


class CheckpointRecipe(Recipe):
    """`difference_path` is where the difference is saved as a LoRA beside the whole checkpoint, if at all."""

    network_module = "checkpoint"

    def __init__(self, job: JobConfig, model: LoadedModel, difference_path: Path | None = None) -> None:
        tuning = job.finetune
        self._model, self._job, self._difference = model, job, difference_path
        self._rates: dict[Part, float] = {"unet": tuning.unet_lr, "te1": tuning.text_encoder_lr}
        self._owned = [own for own in model.own_parameters() if self._rates.get(own.part, 0) > 0]
        self.trains_text_encoder = self._rates["te1"] > 0
        start = _read_start(job)
        self._whole = model.checkpoint_tensors()  # of now: later the modules hold other weights
        missing = sorted({own.key for own in self._owned} - self._whole.keys())
        if missing:
            raise ModelError(f"The checkpoint has no tensor {missing[0]}: load one in a single .safetensors file.")
        self.learned = {own.key: nn.Parameter(_copied(own, start, self._whole)) for own in self._owned}
        self._average: dict[str, torch.Tensor] | None = None
        if tuning.ema:
            self._average = {key: parameter.detach().clone() for key, parameter in self.learned.items()}
        self._steps = 0

    def groups(self) -> list[dict[str, Any]]:
        return [
            {
                "params": [self.learned[own.key] for own in self._owned if own.part == part],
                "lr": rate,
                "name": part,
            }
            for part, rate in self._rates.items()
            if rate > 0
        ]

    def modules(self) -> dict[str, int]:
        counts: dict[str, set[int]] = {}
        for own in self._owned:
            counts.setdefault(own.part, set()).add(id(own.owner))
        return {part: len(owners) for part, owners in counts.items()}

    def applied(self) -> contextlib.AbstractContextManager[None]:
        return self._swapped(lambda own, original: self.learned[own.key])

    def previewed(self) -> contextlib.AbstractContextManager[None]:
        """In the host's own precision, and what would be saved: the average where there is one."""
        result = self._result()
        return self._swapped(
            lambda own, original: nn.Parameter(result[own.key].to(original.dtype), requires_grad=False)
        )

    @contextlib.contextmanager
    def _swapped(self, replacement: Callable[[OwnParameter, nn.Parameter], nn.Parameter]) -> Iterator[None]:
        originals = [(own, _parameter(own)) for own in self._owned]
        devices = [original.device for _, original in originals]
        try:
            for own, original in originals:
                own.owner._parameters[own.name] = replacement(own, original)
                if original.device.type == "cuda":
                    original.data = original.data.to("cpu")
            yield
        finally:
            for (own, original), device in zip(originals, devices, strict=True):
                if original.device != device:
                    original.data = original.data.to(device)
                own.owner._parameters[own.name] = original

    def after_step(self) -> None:
        """EMA with a warm-up: early weights are forgotten soon (the decay of step n is at most (1+n)/(10+n))."""
        self._steps += 1
        if self._average is not None:
            decay = min(self._job.finetune.ema_decay, (1 + self._steps) / (10 + self._steps))
            with torch.no_grad():
                for key, average in self._average.items():
                    average.lerp_(self.learned[key].detach(), 1 - decay)

    def _result(self) -> dict[str, torch.Tensor]:
        if self._average is not None:
            return self._average
        return {key: parameter.detach() for key, parameter in self.learned.items()}

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        result = self._result()
        whole = self._whole | {key: tensor.cpu() for key, tensor in result.items()}
        dtype = DTYPES[self._job.output.precision]
        write_checkpoint(path, whole, dtype, facts, self._model.file, overwrite=overwrite)
        if self._difference is not None and path.stem == self._job.output.name:
            self._save_difference(self._difference, result, facts, overwrite=overwrite)

    def _save_difference(
        self, path: Path, result: dict[str, torch.Tensor], facts: dict[str, str], *, overwrite: bool
    ) -> None:
        keys = {id(own.owner): own.key for own in self._owned if own.name == "weight"}
        changed = (
            (target.key, result[keys[id(target.module)]].cpu() - self._whole[keys[id(target.module)]].float())
            for target in self._model.adaptable_modules()
            if id(target.module) in keys
        )
        tensors = lora_of_differences(changed, self._job.finetune.difference_rank, torch.float16)
        if tensors:
            write_lora(path, tensors, {**facts, "ss_network_module": "networks.lora"}, overwrite=overwrite)


def _parameter(own: OwnParameter) -> nn.Parameter:
    parameter = own.owner._parameters[own.name]
    assert parameter is not None
    return parameter


def _copied(own: OwnParameter, start: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> torch.Tensor:
    """From the file to continue from, or from the checkpoint: the parameter itself may be held in 8 bits."""
    original = _parameter(own)
    found = start.get(own.key)
    if found is not None and found.shape != original.shape:
        raise ModelError(
            f"network.continue_from: {own.key} has the shape {tuple(found.shape)} there and {tuple(original.shape)} in "
            "this checkpoint: choose a file made from it."
        )
    source = whole[own.key] if found is None else found
    return source.to(original.device, torch.float32, copy=True)


def _read_start(job: JobConfig) -> dict[str, torch.Tensor]:
    if not job.network.continue_from:
        return {}
    return read_checkpoint(Path(job.network.continue_from).expanduser())
