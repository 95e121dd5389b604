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
from lib_trainer.networks.formats.checkpoint_file import read_checkpoint, write_checkpoint
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.networks.low_rank import lora_of_differences
from lib_trainer.ports import LoadedModel, OwnParameter
from lib_trainer.refusals import MemoryExhausted, ModelError
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.recipes import Progress, Recipe
from lib_trainer.training.slots import Slot, give_back, parameter_of, whole_weight

logger = logging.getLogger(__name__)


class CheckpointRecipe(Recipe):
    """`difference_path` is where the difference is saved as a LoRA beside the whole checkpoint, if at all."""

    network_module = "checkpoint"

    def __init__(self, job: JobConfig, model: LoadedModel, difference_path: Path | None = None) -> None:
        tuning = job.finetune
        self._model, self._job, self._difference = model, job, difference_path
        self._rates = model.family.rates(tuning.unet_lr, tuning.text_encoder_lr)
        self._owned = [own for own in model.own_parameters() if self._rates.get(own.part, 0) > 0]
        self.trains_text_encoder = tuning.text_encoder_lr > 0
        start = _read_start(job)
        self.replaces = tuple({own.part: None for own in self._owned})
        self._rest = _apart(model, [own.key for own in self._owned])
        self.learned = {own.key: nn.Parameter(_copied(own, start)) for own in self._owned}
        self._waiting: dict[str, torch.Tensor] = {}
        self._lost = False
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

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The weights that learn, in fp32. After an error they are on the CPU, as the device may be full."""
        slots = [Slot(own, self._waiting) for own in self._owned]
        try:
            for slot in slots:
                slot.take(self.learned[slot.own.key])
            yield
        except BaseException:
            give_back(slots, clear=True)
            raise
        finally:
            self._lost = self._lost or any(slot.lost for slot in slots)
        give_back(slots, clear=False)

    @contextlib.contextmanager
    def previewed(self) -> Iterator[None]:
        """In the host's own precision, and what would be saved: the average where there is one."""
        result = self._result()
        slots = [Slot(own, self._waiting) for own in self._owned]
        try:
            for slot in slots:
                slot.take_copy(result[slot.own.key])
            yield
        finally:
            give_back(slots, clear=False)

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
        if self._lost:
            raise MemoryExhausted("What was learned is lost: neither the device nor the computer had room to keep it.")
        dtype = DTYPES[self._job.output.precision]
        write_checkpoint(path, self._rest | self._result(), dtype, facts, self._model.file, overwrite=overwrite)

    def finish(self, facts: dict[str, str], phase: Callable[[str], Progress], stopping: Callable[[], bool]) -> None:
        """The difference to the loaded checkpoint as a LoRA, if the job wants it."""
        if self._difference is None:
            return
        result, device = self._result(), self._model.device
        owned = {id(own.owner): own for own in self._owned if own.name == "weight"}
        targets = [target for target in self._model.adaptable_modules() if id(target.module) in owned]

        def changed() -> Iterator[tuple[str, torch.Tensor]]:
            progress = phase("Making the difference a LoRA")
            for done, target in enumerate(targets):
                if stopping():
                    return
                progress(done, len(targets))
                own = owned[id(target.module)]
                yield target.key, result[own.key].to(device) - whole_weight(own).to(device).float()
            progress(len(targets), len(targets))

        tensors = lora_of_differences(changed(), self._job.finetune.difference_rank, torch.float16)
        if stopping():
            logger.info("The LoRA of the difference is left out: Stop was pressed while it was made")
        elif tensors:
            write_lora(self._difference, tensors, {**facts, "ss_network_module": "networks.lora"}, overwrite=False)


def _apart(model: LoadedModel, without: list[str]) -> dict[str, torch.Tensor]:
    """What is not trained, as it is now: later the host may hold it in another precision, in the same memory."""
    tensors = model.checkpoint_tensors(without)
    return {key: tensor.clone() for key, tensor in tensors.items()} if model.device.type == "cpu" else tensors


def _copied(own: OwnParameter, start: dict[str, torch.Tensor]) -> torch.Tensor:
    original = parameter_of(own)
    found = start.get(own.key)
    if found is not None and found.shape != original.shape:
        raise ModelError(
            f"network.continue_from: {own.key} has the shape {tuple(found.shape)} there and {tuple(original.shape)} in "
            "this checkpoint: choose a file made from it."
        )
    source = whole_weight(own) if found is None else found
    return source.to(original.device, torch.float32, copy=True)


def _read_start(job: JobConfig) -> dict[str, torch.Tensor]:
    if not job.network.continue_from:
        return {}
    return read_checkpoint(Path(job.network.continue_from).expanduser())
