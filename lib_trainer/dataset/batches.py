"""Which size each picture is trained at, and in which order the pictures come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lib_trainer.refusals import ConfigError


class Sizer(Protocol):
    """Chooses the size that a picture is trained at."""

    def size_for(self, original: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the picture → (width, height) of the target, both divisible by 8; pixels."""


@dataclass(frozen=True)
class FixedSize:
    """The same size for every picture. Raises `ConfigError` for sides that the VAE cannot encode."""

    width: int
    height: int

    def __post_init__(self) -> None:
        for name, side in (("width", self.width), ("height", self.height)):
            if side <= 0 or side % 8:
                raise ConfigError("size.not_of_8", field=f"dataset.{name}", side=side)

    def size_for(self, original: tuple[int, int]) -> tuple[int, int]:
        return self.width, self.height


def epoch_batches(
    sizes: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """One epoch: lists of at most `batch_size` indices into `sizes`, in the order they are trained.

    Index i comes exactly `repeats[i]` times, a batch holds pictures of one target size, and there are as few batches as
    that allows: only the last one cut from each size may be short. Indices and batches are shuffled by `generator` (on
    the CPU) alone. Raises `ValueError` for lengths that differ, a negative repeat or a batch size below 1.
    """
    batches: list[list[int]] = []
    for indices in _by_size(sizes, repeats, batch_size).values():
        order = torch.randperm(len(indices), generator=generator).tolist()
        shuffled = [indices[position] for position in order]
        batches += [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
    return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]


def batches_per_epoch(sizes: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int) -> int:
    """The length of what `epoch_batches` returns. Raises `ValueError` as it does."""
    return sum(-(-len(indices) // batch_size) for indices in _by_size(sizes, repeats, batch_size).values())


def _by_size(
    sizes: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int
) -> dict[tuple[int, int], list[int]]:
    if batch_size < 1 or any(count < 0 for count in repeats):
        raise ValueError("batch size must be at least 1, and repeats must not be negative")
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (size, count) in enumerate(zip(sizes, repeats, strict=True)):
        groups.setdefault(size, []).extend([index] * count)
    return groups
