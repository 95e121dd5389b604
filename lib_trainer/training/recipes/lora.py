"""The LoRA recipe: adapters on the attention layers of the UNet and the text encoders."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from lib_trainer.config import JobConfig
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import LoadedModel, Part
from lib_trainer.training.precision import DTYPES


class LoraRecipe:
    """Fresh adapters for a job. Parts whose learning rate is 0 get none."""

    def __init__(self, job: JobConfig, model: LoadedModel) -> None:
        unet_rate, text_rate = job.optimizer.unet_lr, job.optimizer.text_encoder_lr
        self._rates: dict[Part, float] = {"unet": unet_rate, "te1": text_rate, "te2": text_rate}
        self._dtype = DTYPES[job.output.precision]
        targets = [
            target
            for target in model.adaptable_modules()
            if target.group == "transformer" and self._rates[target.part] > 0
        ]
        self.network = LoraNetwork.create(
            targets,
            rank=job.network.rank,
            alpha=job.network.alpha or job.network.rank,
            generator=torch.Generator().manual_seed(job.training.seed),
        )
        self.trains_text_encoder = text_rate > 0

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": self.network.parameters_of(part), "lr": self._rates[part], "name": part}
            for part in self.network.parts()
        ]

    def modules(self) -> dict[str, int]:
        return {str(part): count for part, count in self.network.parts().items()}

    def applied(self) -> AbstractContextManager[None]:
        return self.network.applied()

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        write_lora(path, self.network.tensors(self._dtype), facts, overwrite=overwrite)
