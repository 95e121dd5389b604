"""Which pictures each step shows, and in which order: a function of the job's seed and the step's place alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from lib_trainer.config import JobConfig
from lib_trainer.dataset.batches import batches_per_epoch, epoch_batches, evened_batches
from lib_trainer.dataset.repeats import SPREAD, Repeats
from lib_trainer.kinds.base import Kind

Role = Literal["learn", "class", "before"]


@dataclass(frozen=True)
class Shown:
    """A picture as far as its place among the others is concerned; `target` is (width, height) in pixels."""

    role: Role
    repeats: float
    target: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """A step: its number and its epoch's, both from 1 on, and the pictures of its batches, by index.

    The pictures of a list have one size. `base`: they are those before a difference. `epoch_begins` and `epoch_ends`:
    it is the first or the last step of its epoch.
    """

    step: int
    epoch: int
    batches: list[list[int]]
    base: bool
    epoch_begins: bool
    epoch_ends: bool


@dataclass(frozen=True)
class Order:
    """Epoch after epoch without end; a step never reaches across the end of an epoch.

    Where the pictures have one size, the last batch of an epoch may be short. With buckets all are full, and what fills
    none is shown in the next epoch (`evened_batches`); a batch of several sizes is several lists then. Either way every
    picture of a step counts alike (`share`).
    """

    job: JobConfig
    kind: Kind
    pictures: tuple[Shown, ...]

    def batches_per_epoch(self) -> int:
        """Of the first epoch. Others may have more or fewer where repeats are no whole numbers."""
        return self._batches(1)

    def _batches(self, epoch: int) -> int:
        repeats = self.repeats(torch.Generator().manual_seed(0), epoch, before=False)
        if self.evened:
            return -(-sum(repeats) // self.job.training.batch_size)
        return batches_per_epoch(self._targets, repeats, self.job.training.batch_size)

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.job.training.max_steps or self._steps_of_epochs

    @functools.cached_property
    def _steps_of_epochs(self) -> int:
        training, wanted = self.job.training, self._wanted["learn"]
        each = 2 if any(one.role == "class" for one in self.pictures) else 1  # there are as many class pictures
        if self.evened:
            shown = each * wanted.total_until(training.epochs)
            return -(-shown // (training.batch_size * training.gradient_accumulation))
        differ = 1 if wanted.whole else training.epochs
        epochs, times = range(1, differ + 1), training.epochs // differ
        if len({*self._targets}) == 1:
            together = training.batch_size * training.gradient_accumulation
            return times * sum(-(-each * wanted.total(epoch) // together) for epoch in epochs)
        return times * sum(-(-self._batches(epoch) // training.gradient_accumulation) for epoch in epochs)

    def base_steps(self) -> int:
        """Steps that belong to the pictures before."""
        return self.kind.base_steps(self.job, self.total_steps())

    def generator(self, epoch: int) -> torch.Generator:
        """What an epoch draws from, first its order and then, step by step, what its batches draw."""
        return torch.Generator().manual_seed((self.job.training.seed + 2 + SPREAD * (epoch - 1)) % 2**32)

    def places(self) -> Iterator[tuple[Place, torch.Generator]]:
        """Every step from the first on, with the generator of its epoch, whose order has been drawn."""
        training, base_steps, step = self.job.training, self.base_steps(), 0
        left: list[int] = []
        for epoch in itertools.count(1):
            before, generator = step < base_steps, self.generator(epoch)
            repeats = self.repeats(generator, epoch, before=before)
            if self.evened:
                drawn, left = self._evened(repeats, left, generator, last=epoch == training.epochs)
            else:
                drawn = [[own] for own in epoch_batches(self._targets, repeats, training.batch_size, generator)]
            starts = range(0, len(drawn), training.gradient_accumulation)
            starts = starts[: base_steps - step] if before else starts
            for start in starts:
                step += 1
                together = drawn[start : start + training.gradient_accumulation]
                batches = [part for batch in together for part in batch]
                yield Place(step, epoch, batches, before, start == 0, start == starts[-1]), generator
            if before and step >= base_steps:
                left = []  # those before are not shown again

    def _evened(
        self, repeats: list[int], left: list[int], generator: torch.Generator, *, last: bool
    ) -> tuple[list[list[list[int]]], list[int]]:
        training = self.job.training
        last = last and not training.max_steps and not self.base_steps()
        size, together = training.batch_size, training.gradient_accumulation
        found = evened_batches(self._targets, repeats, size, together, left, generator, last=last)
        return found.batches, found.left

    def share(self, batches: list[list[int]], place: int) -> float:
        """The factor on the loss of the pictures of one of a step's batches, whose means are averaged: 1 where all are
        of one length."""
        return len(batches[place]) * len(batches) / sum(len(batch) for batch in batches)

    @property
    def evened(self) -> bool:
        """Whether all batches are full."""
        return self.job.buckets.enabled

    def repeats(self, generator: torch.Generator, epoch: int, *, before: bool) -> list[int]:
        """How often an epoch shows each picture. There are as many class pictures as others, chosen anew each."""
        repeats = self._wanted["before" if before else "learn"].of(epoch)
        others = [index for index, one in enumerate(self.pictures) if one.role == "class"]
        if others and not before:
            whole, rest = divmod(sum(repeats), len(others))
            chosen = set(torch.randperm(len(others), generator=generator)[:rest].tolist())
            for place, index in enumerate(others):
                repeats[index] = whole + (place in chosen)
        return repeats

    @functools.cached_property
    def _wanted(self) -> dict[Role, Repeats]:
        """By what is shown: the repeats of those pictures, 0 of all others."""
        roles: tuple[Role, ...] = ("learn", "before")
        return {
            role: Repeats([one.repeats if one.role == role else 0 for one in self.pictures], self.job.training.seed)
            for role in roles
        }

    @property
    def _targets(self) -> list[tuple[int, int]]:
        return [one.target for one in self.pictures]
