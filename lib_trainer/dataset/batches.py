"""Which size each picture is trained at, and in which order the pictures come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lib_trainer.refusals import ConfigError


class Sizer(Protocol):
    """Chooses the sizes that a picture is trained at."""

    def sizes_for(self, original: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(width, height) of the picture → those of its targets, all divisible by 8; pixels. There are as many for each
        picture, at least one."""


@dataclass(frozen=True)
class FixedSize:
    """The same size for every picture. Raises `ConfigError` for sides that the VAE cannot encode."""

    width: int
    height: int

    def __post_init__(self) -> None:
        for name, side in (("width", self.width), ("height", self.height)):
            if side <= 0 or side % 8:
                raise ConfigError("size.not_of_8", field=f"dataset.{name}", side=side)

    def sizes_for(self, original: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return ((self.width, self.height),)


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


@dataclass(frozen=True)
class Evened:
    """An epoch of full batches, and what it leaves to the next one.

    `batches`: each is a list of parts, and a part is a list of indices of one target size; nearly all have one part.
    `left`: indices that wait for the next epoch, where they come first.
    """

    batches: list[list[list[int]]]
    left: list[int]


def evened_batches(
    sizes: Sequence[tuple[int, int]],
    repeats: Sequence[int],
    batch_size: int,
    together: int,
    left: Sequence[int],
    generator: torch.Generator,
    *,
    last: bool = False,
) -> Evened:
    """One epoch whose batches all hold `batch_size` pictures, in a number that is a multiple of `together`.

    Index i is wanted `repeats[i]` times, and what the epoch before has `left` as well. What fills no batch of its own
    size is left to the next epoch, but nothing is left twice: where a size has too few pictures for a batch an epoch,
    those that have waited share a batch with pictures of other sizes, each size as a part of its own. So after any
    number of epochs an index has been shown as often as it was wanted, or less by what it is wanted in one epoch at
    most. Only a set that has fewer pictures than `batch_size` times `together` waits longer, until it fills them.

    `last`: nothing is left; one batch, the last, may then be short, and their number any. Indices and batches are
    shuffled by `generator` (on the CPU) alone. Raises `ValueError` as `epoch_batches` does.
    """
    waited: dict[tuple[int, int], list[int]] = {}
    for index in left:
        waited.setdefault(sizes[index], []).append(index)
    fresh = {size: _spread(own, repeats, generator) for size, own in _by_size(sizes, repeats, batch_size).items()}
    order = sorted({*waited, *fresh})
    order = [order[place] for place in torch.randperm(len(order), generator=generator).tolist()]
    pools = {size: waited.get(size, []) + fresh.get(size, []) for size in order}
    spare = {size: min(len(pools[size]) % batch_size, len(fresh.get(size, []))) for size in order}
    held: list[int] = []
    if not last:
        counts = {size: (len(pools[size]), len(fresh.get(size, []))) for size in order}
        for size, count in _to_leave(counts, spare, batch_size * together).items():
            keep = len(pools[size]) - count
            held += pools[size][keep:]
            pools[size] = pools[size][:keep]
    whole, rest = [], list[int]()
    for pool in pools.values():
        full = len(pool) // batch_size * batch_size
        whole += [[pool[start : start + batch_size]] for start in range(0, full, batch_size)]
        rest += pool[full:]
    mixed = [_parts(rest[start : start + batch_size], sizes) for start in range(0, len(rest), batch_size)]
    short = [mixed.pop()] if len(rest) % batch_size else []
    whole += mixed
    shuffled = [whole[place] for place in torch.randperm(len(whole), generator=generator).tolist()]
    return Evened(shuffled + short, held)


def _spread(indices: Sequence[int], repeats: Sequence[int], generator: torch.Generator) -> list[int]:
    """Shuffled, with the repeats of each index far apart, so that few of them are at the end together."""
    seen: dict[int, int] = {}
    keys = torch.rand(len(indices), generator=generator, dtype=torch.float64).tolist()
    placed = []
    for key, index in zip(keys, indices, strict=True):
        seen[index] = (copy := seen.get(index, 0)) + 1
        placed.append(((copy + key) / repeats[index], index))
    return [index for _, index in sorted(placed)]


def _to_leave(
    counts: dict[tuple[int, int], tuple[int, int]], spare: dict[tuple[int, int], int], step: int
) -> dict[tuple[int, int], int]:
    """How many of each size are left to the next epoch, so that what remains is a multiple of `step` pictures.

    `counts`: of each size all that there are, and how many of them have not waited; `spare`: how many of the latter
    fill no batch. These are left, as many as may be; where they are too few, others of the most frequent sizes.
    """
    total = sum(there for there, _ in counts.values())
    if total < step:
        return {size: there for size, (there, _) in counts.items()}
    leave = total % step + max(0, sum(spare.values()) - total % step) // step * step
    found: dict[tuple[int, int], int] = {}
    for size, count in spare.items():
        found[size] = min(count, leave)
        leave -= found[size]
    for size, (_, fresh) in sorted(counts.items(), key=lambda item: -item[1][1]):
        more = min(leave, fresh - found[size])
        found[size] += more
        leave -= more
    return found


def _parts(indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Divided by size."""
    parts: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        parts.setdefault(sizes[index], []).append(index)
    return list(parts.values())


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
