"""Difference training (差异炼丹法): what makes the second of a pair of pictures different from the first, as a LoRA.

A first LoRA learns the picture before by heart and is then held; on top of it a second one learns the picture after,
and as all that both share is in the first already, it learns the difference alone. Only the second is saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lib_trainer.config import JobConfig
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.ports import LoadedModel
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.recipes import Recipe
from lib_trainer.training.recipes.adapters import DropoutSeeds, make_networks, rate_groups


class DifferenceRecipe(Recipe):
    """While the pictures before are shown the first network learns, and then the second (see `PictureSource`)."""

    network_module = "networks.lora"

    def __init__(self, job: JobConfig, model: LoadedModel) -> None:
        self._job = job
        fresh = msgspec.structs.replace(job.network, continue_from="")
        self.base = make_networks(msgspec.structs.replace(job, network=fresh), model).trained
        self.networks = make_networks(job, model)
        self.network = self.networks.trained
        self.trains_text_encoder = any(adapter.part != "unet" for adapter in self.network)
        self._seeds = DropoutSeeds(job)
        first = [{**group, "name": f"{group['name']}, before"} for group in rate_groups(job, self.base, model.family)]
        self._groups = first + rate_groups(job, self.network, model.family)
        self.before_step(1, base=True)

    def groups(self) -> list[dict[str, Any]]:
        return self._groups

    def modules(self) -> dict[str, int]:
        return {str(part): count for part, count in self.network.parts().items()}

    def before_step(self, step: int, *, base: bool) -> None:
        """Only one of the two learns at a time: the optimizer passes parameters without a gradient by."""
        self._seeds.set(step)
        self.base.learn(base)
        self.network.learn(not base)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self.base.applied(), self.networks.applied():
            yield

    def previewed(self) -> contextlib.AbstractContextManager[None]:
        """What is saved: the difference alone."""
        return self.networks.applied()

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        write_lora(path, self.networks.tensors(DTYPES[self._job.output.precision]), facts, overwrite=overwrite)
