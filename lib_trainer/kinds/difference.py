"""Difference training (差异炼丹法): what makes the second of a pair of pictures different from the first, as a LoRA.

A first LoRA learns the picture before by heart and is then held; on top of it a second one learns the picture after,
and as all that both share is in the first already, it learns the difference alone. Only the second is saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from lib_trainer.config import JobConfig
from lib_trainer.dataset.folder import list_folder
from lib_trainer.dataset.pictures import PictureError, read_size
from lib_trainer.dataset.scan import Sample, Scan
from lib_trainer.kinds.adapters import AdapterKind, AdapterRecipe, make_networks, rate_groups
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.ports import Host, LoadedModel
from lib_trainer.refusals import ConfigError, DatasetError, Field, Problems


class DifferenceKind(AdapterKind):
    """What holds for a LoRA holds here too, and a second one learns before it."""

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        super().check(job, host, problems)
        with problems.at():
            if not job.difference.before:
                raise ConfigError("difference.empty", field="difference.before")
        with problems.at():
            if job.training.max_steps and job.difference.base_steps >= job.training.max_steps:
                raise ConfigError(
                    "difference.no_steps",
                    field="difference.base_steps",
                    base_steps=job.difference.base_steps,
                    all=job.training.max_steps,
                    max_steps=Field("training.max_steps"),
                )

    def before(self, job: JobConfig, scan: Scan) -> list[Sample]:
        """The pictures before, each with the caption of its partner.

        A single picture is the partner of all; in a folder the file names decide: the whole name, then that without
        its ending.
        """
        place = Path(job.difference.before).expanduser()
        if not place.exists():
            raise ConfigError("difference.missing", field="difference.before", path=place)
        listing = list_folder(place) if place.is_dir() else None
        found = []
        for sample in scan.samples:
            partner = place.name if listing is None else listing.partner(sample.path.name)
            path = place if listing is None else place / (partner or "")
            if partner is None:
                raise DatasetError("pair.none", folder=place, name=sample.path.name)
            try:
                size = read_size(path)
            except PictureError as error:
                raise DatasetError("pair.unreadable", path=path, reason=error.reason) from error
            alike = size[0] * sample.size[1] == size[1] * sample.size[0]
            mask = sample.mask if alike else None  # the same place is learned before and after
            found.append(replace(sample, path=path, size=size, role="before", mask=mask))
        return found

    def base_steps(self, job: JobConfig, total: int) -> int:
        return min(job.difference.base_steps or total // 2, total - 1)

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        return DifferenceRecipe(self, job, model)


class DifferenceRecipe(AdapterRecipe):
    """While the pictures before are shown the first network learns, and then the second."""

    def __init__(self, kind: DifferenceKind, job: JobConfig, model: LoadedModel) -> None:
        fresh = msgspec.structs.replace(job.network, continue_from="")
        self.base = make_networks(kind, msgspec.structs.replace(job, network=fresh), model).trained
        super().__init__(kind, job, model)
        self._learning = self.base
        first = [{**group, "name": f"{group['name']}, before"} for group in rate_groups(job, self.base, model.family)]
        self._groups = first + self._groups

    def before_step(self, step: int, *, base: bool) -> None:
        """Only one of the two learns at a time: the optimizer passes parameters without a gradient by."""
        super().before_step(step, base=base)
        self._learning = self.base if base else self.network
        self.base.learn(base)
        self.network.learn(not base)

    def bare(self) -> contextlib.AbstractContextManager[None]:
        """What was learned before stays on while the difference is learned."""
        return self._learning.off()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self.base.applied(), super().applied():
            yield

    def previewed(self) -> contextlib.AbstractContextManager[None]:
        """What is saved: the difference alone."""
        return super().applied()
