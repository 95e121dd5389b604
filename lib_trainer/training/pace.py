"""Whether a run has begun to crawl, as it does where a card's memory spills into the computer's."""

from __future__ import annotations

import statistics
from collections import deque

import torch

from lib_trainer.memory import spills
from lib_trainer.refusals import Decimals, Sentence

WARM_UP = 3
"""Steps at the beginning that tell nothing: kernels are chosen and memory is asked for."""
USUAL = 20
"""Steps whose median is the usual pace."""
RECENT = 5
SLOW = 4.0
"""Times the usual pace from which on a run crawls."""
NOTICED = 1.0
"""Seconds a step below which nobody minds."""


class Pace:
    """Is told of each step, and says once that the last ones take many times as long as the first ones did.

    Medians are compared, so that single steps do not count: a slow disk, a picture drawn elsewhere, a smaller batch.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=RECENT)
        self._skipped = 0
        self._told = self._spilled = False

    def told(self, seconds: float, device: torch.device) -> Sentence | None:
        """The beginning of a sentence, once for each of two reasons."""
        slow = self.step(seconds)
        if slow is not None:
            return Sentence("pace.slower", now=Decimals(slow[0], 1), usual=Decimals(slow[1], 1))
        if not self._spilled and spills(device):
            self._spilled = True
            return Sentence("pace.spills")
        return None

    def step(self, seconds: float) -> tuple[float, float] | None:
        """(seconds of a step now, seconds of a usual one) when a run has just been found to crawl."""
        if self._skipped < WARM_UP:
            self._skipped += 1
            return None
        if len(self._first) < USUAL:
            self._first.append(seconds)
        self._last.append(seconds)
        if self._told or len(self._first) < 2 * RECENT or len(self._last) < RECENT:
            return None
        usual, now = statistics.median(self._first), statistics.median(self._last)
        if now < NOTICED or now < SLOW * usual:
            return None
        self._told = True
        return now, usual
