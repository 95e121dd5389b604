"""How often each epoch shows each picture, where repeats need not be whole numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

FINEST = 1000
"""Repeats are read as the nearest fraction with at most this denominator."""
SPREAD = 2654435761
"""Odd, so that the seeds of 2³² cycles differ; 2³² over the golden ratio, so that neighbours lie far apart."""


class Repeats:
    """A picture of repeats 0.5 is shown in one of two epochs, one of 2.25 three times in one of four and else twice.

    After n epochs a picture of repeats r has been asked for ⌊n·r⌋ or ⌈n·r⌉ times, and of k pictures with the same part
    behind the point f an epoch shows ⌊k·f⌋ or ⌈k·f⌉ once more, so that epochs are of one length. Which ones these are
    is drawn anew as soon as all of them have had the same number: after as many epochs as the denominator of f says.
    What an epoch shows hangs on the seed and its number alone; whole numbers draw nothing.
    """

    def __init__(self, repeats: Sequence[float], seed: int) -> None:
        exact = [max(Fraction(one).limit_denominator(FINEST), Fraction(one > 0, FINEST)) for one in repeats]
        self._whole = np.array([int(one) for one in exact], dtype=np.int64)
        self._seed = seed
        groups: dict[Fraction, list[int]] = {}
        for index, one in enumerate(exact):
            if one.denominator > 1:
                groups.setdefault(one - int(one), []).append(index)
        self._groups = [(part, np.array(indices)) for part, indices in sorted(groups.items())]
        self._drawn: dict[Fraction, tuple[int, npt.NDArray[np.int64]]] = {}

    @property
    def whole(self) -> bool:
        """Whether every epoch shows the same."""
        return not self._groups

    def of(self, epoch: int) -> list[int]:
        """How often each picture is asked for in an epoch, from 1 on."""
        counts = self._whole.copy()
        for part, indices in self._groups:
            cycle, place = divmod(epoch - 1, part.denominator)
            phases = self._phases(part, len(indices), cycle)
            # parts that are there after this epoch of the cycle, less those before it; in whole numbers, so that
            # nothing is rounded
            step, unit = part.numerator * len(indices), part.denominator * len(indices)
            counts[indices] += ((place + 1) * step + phases) // unit - (place * step + phases) // unit
        return [int(one) for one in counts]

    def total(self, epoch: int) -> int:
        """The sum of `of`, without a look at each picture."""
        return self._sure + sum(
            self._shown(part, len(indices), epoch) - self._shown(part, len(indices), epoch - 1)
            for part, indices in self._groups
        )

    def total_until(self, epochs: int) -> int:
        """The sum of `total` over the first epochs, without a look at each of them."""
        return epochs * self._sure + sum(self._shown(part, len(indices), epochs) for part, indices in self._groups)

    @functools.cached_property
    def _sure(self) -> int:
        return int(self._whole.sum())

    def _shown(self, part: Fraction, count: int, epochs: int) -> int:
        """How often the pictures of a group are shown in the first epochs, beside their whole numbers.

        A cycle shows all of them equally often. Within one the phases are evenly apart, and the sum of their whole
        parts is that of the shift alone (Hermite's identity).
        """
        cycles, rest = divmod(epochs, part.denominator)
        whole = cycles * part.numerator * count
        if not rest:
            return whole
        return whole + (rest * part.numerator * count + self._shift(part, cycles)[0]) // part.denominator

    def _shift(self, part: Fraction, cycle: int) -> tuple[int, torch.Generator]:
        """Where a cycle begins, and what draws the rest of it."""
        seed = (self._seed + 3 + SPREAD * cycle + 31 * part.numerator + part.denominator) % 2**32
        generator = torch.Generator().manual_seed(seed)
        return int(torch.randint(part.denominator, (1,), generator=generator)), generator

    def _phases(self, part: Fraction, count: int, cycle: int) -> npt.NDArray[np.int64]:
        """How far each picture is on its way when a cycle begins, from 0 up to `count` times the denominator: evenly
        apart, which is what makes epochs of one length (Hermite's identity)."""
        known = self._drawn.get(part)
        if known is None or known[0] != cycle:
            shift, generator = self._shift(part, cycle)
            order = torch.randperm(count, generator=generator).numpy()
            known = self._drawn[part] = cycle, order * part.denominator + shift
        return known[1]
