"""What a kind of training needs of memory, reckoned from a table of its model, and what lowers that."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.refusals import Sentence
from lib_trainer.training.memory_table import Layer, Table, Work
from lib_trainer.training.optimizers import Shapes


@dataclass(frozen=True)
class Batch:
    """What a step is shown: cells of latents, and pieces of 75 tokens of captions, of all its pictures. `mask`: bytes
    that a dropout keeps of each number."""

    cells: int
    chunks: int
    mask: int = 1


Changes = Sequence[Mapping[str, Any]]
"""Values of options that may be changed together, from the smallest change on."""


def kept_in(dtype: torch.dtype, *, recomputed: bool) -> str:
    """What tables of memory call a run's precision, and what becomes of its activations."""
    return f"{'full' if dtype is torch.float32 else 'half'} {'recomputed' if recomputed else 'kept'}"


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

    def groups(self, job: JobConfig, table: Table) -> Sequence[Shapes]:
        """What an optimizer is given, in groups that it steps one after the other."""
        return [[((numbers,), 1)] for numbers in self.learned(job, table).values()]

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return False

    def measured_as(self, job: JobConfig) -> str:
        """What tables of memory call its step."""
        return self._measured

    def activations(self, job: JobConfig, table: Table, work: Work, dtype: torch.dtype, batch: Batch) -> float:
        """Bytes of a step beyond those that the table tells of a job of all blocks at the ranks that were measured."""
        return 0.0

    def keeping(self, job: JobConfig, table: Table) -> Collection[Layer]:
        """Layers that keep what they are given, whatever their own weights are held in."""
        return ()

    def beside(self, job: JobConfig, table: Table, dtype: torch.dtype) -> float:
        """Bytes of what does not learn in a step and is there as long as it takes."""
        return 0.0

    def least_share(self, job: JobConfig, work: Work, *, again: bool = False) -> float:
        """Bytes that a step takes whatever the pictures, for each byte that learns in it. `again`: its gradients are
        added, one by one, to those that are there."""
        return max(0.0, work.least - 1) if again else work.least

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
