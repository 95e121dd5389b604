"""Pivotal tuning: a LoRA and the words that it is called by, trained together and kept in one file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.kinds.adapter_memory import AdapterMemory
from lib_trainer.kinds.adapters import AdapterKind, AdapterRecipe
from lib_trainer.kinds.base import CONTINUE
from lib_trainer.kinds.memory import Changes
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.kinds.words import Words, check_words, numbers_of_words
from lib_trainer.networks.formats.lora_file import bundled, read_lora, write_lora
from lib_trainer.ports import Host, LoadedModel, Rows
from lib_trainer.refusals import ConfigError, Problems
from lib_trainer.training.memory_table import Table
from lib_trainer.training.names import numbered
from lib_trainer.training.precision import DTYPES


class PivotalMemory(AdapterMemory):
    """Of the words too, which cannot do without the text encoder."""

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        return super().learned(job, table) | {"words": numbers_of_words(job, table.text_width)}

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return True

    def mild_remedies(self, job: JobConfig) -> Iterator[Changes]:
        yield from ()


class PivotalKind(AdapterKind):
    """What holds for a LoRA holds here too."""

    memory_type = PivotalMemory

    def numbered(self, job: JobConfig, number: int) -> JobConfig:
        """A file that is gone on from knows its words by their names, so they keep them."""
        if not job.network.continue_from:
            return super().numbered(job, number)
        return self._named(job, numbered(job.output.name, number), ", ".join(self.words(job)))

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        super().check(job, host, problems)
        words, field = self.words(job), self.names_field(job)
        check_words(job, words, field, host, problems)
        with problems.at():
            dotted = next((name for name in words if "." in name), None)
            if dotted is not None:
                raise ConfigError("pivotal.dot", field=field, name=dotted)
        if job.network.continue_from:
            with problems.at(CONTINUE):
                _check_embeddings(Path(job.network.continue_from).expanduser(), words, host.family())

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        return PivotalRecipe(self, job, model)


def _check_embeddings(path: Path, words: Sequence[str], family: Family) -> None:
    found = read_lora(path).embeddings(family)
    absent = next((name for name in words if name not in found), None)
    if absent is not None:
        held = ", ".join(sorted(found)) or "none"
        raise ConfigError("pivotal.absent", field=CONTINUE, path=path, name=absent, held=held)


class PivotalRecipe(Recipe):
    """Adapters and rows, side by side."""

    trains_text_encoder = True

    def __init__(self, kind: PivotalKind, job: JobConfig, model: LoadedModel) -> None:
        self._dtype = DTYPES[job.output.precision]
        self.network_module = kind.module_name(job)
        self.adapters = AdapterRecipe(kind, job, model)
        self.draws = self.adapters.draws
        self._family = model.family
        found: Mapping[str, Rows] = {}
        if job.network.continue_from:
            found = read_lora(Path(job.network.continue_from).expanduser()).embeddings(model.family)
        self.words = Words(job, kind.words(job), model, found)

    def groups(self) -> list[dict[str, Any]]:
        return [*self.adapters.groups(), self.words.group()]

    def modules(self) -> dict[str, int]:
        return {**self.adapters.modules(), "embedding": len(self.words.rows)}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self.adapters.applied(), self.words.applied():
            yield

    def bare(self) -> contextlib.AbstractContextManager[None]:
        return self.adapters.bare()

    def before_step(self, step: int, *, base: bool) -> None:
        self.adapters.before_step(step, base=base)

    def bound(self) -> None:
        self.adapters.bound()

    def after_step(self) -> None:
        self.words.after_step()

    def save(self, files: Sequence[Path], facts: dict[str, str], *, overwrite: bool) -> None:
        words = bundled(self.words.rows, self._family, self._dtype)
        tensors = self.adapters.networks.tensors(self._dtype) | words
        write_lora(files[0], tensors, facts, overwrite=overwrite)
