"""What a kind of training needs of memory, reckoned from a table of its model, and what lowers that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.refusals import Sentence
from lib_trainer.training.memory_table import Table, Work
from lib_trainer.training.optimizers import Shapes

Changes = Sequence[Mapping[str, Any]]
"""Values of options that may be changed together, from the smallest change on."""


class KindMemory:
    """What the forecast asks. It holds nothing of a job. What holds for most kinds is answered here."""

    learning_share = 1.0
    """Of what learns in a run, how much learns in one step."""

    def __init__(self, measured: str) -> None:
        """`measured` is what tables of memory call the kind."""
        self._measured = measured

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        """How many numbers learn, by part."""
        raise NotImplementedError

    def shapes(self, job: JobConfig, table: Table) -> Shapes:
        """Of what an optimizer is given."""
        return [((numbers,), 1) for numbers in self.learned(job, table).values()]

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return False

    def measured_as(self, job: JobConfig) -> str:
        """What tables of memory call its step."""
        return self._measured

    def activations(self, job: JobConfig, table: Table, work: Work, dtype: torch.dtype, cells: int) -> float:
        """Bytes of a step beyond those that the table tells of a job at the ranks that it was measured at."""
        return 0.0

    def least_share(self, job: JobConfig, work: Work) -> float:
        """Bytes that a step takes whatever the pictures, for each byte that learns in it."""
        return work.least

    def replaces(self, job: JobConfig, family: Family) -> frozenset[str]:
        """Parts of the model whose own weights are away while others learn in their place."""
        return frozenset()

    def to_lower(self, job: JobConfig, device: torch.device) -> list[Sentence]:
        """What else costs memory. The list follows the word "lower"."""
        return []

    def mild_remedies(self, job: JobConfig) -> Iterator[Changes]:
        """Changes that need less memory and harm the result little."""
        yield from ()

    def hard_remedies(self, job: JobConfig) -> Iterator[Changes]:
        """Changes that need less memory and make the result another one."""
        yield from ()
