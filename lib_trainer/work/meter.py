"""How fast a job gets on, and how long it still takes."""

from __future__ import annotations

import time
from collections import deque

from lib_trainer.dataset.folder import Skipped
from lib_trainer.refusals import Sentence
from lib_trainer.work.events import Phase

WINDOW_SECONDS = 20.0


class Meter:
    """Units a second over the last seconds."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self.started, 0)])

    def update(self, done: int) -> float:
        """Tell how many units are done; returns the rate."""
        now = time.monotonic()
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW_SECONDS:
            self._marks.popleft()
        (before, earlier), (last, latest) = self._marks[0], self._marks[-1]
        return (latest - earlier) / (last - before) if last > before else 0.0

    def phase(
        self,
        name: Sentence | str,
        done: int,
        total: int,
        unit: str,
        *,
        free: int = 0,
        known: int = 0,
        left_out: tuple[Skipped, ...] = (),
    ) -> Phase:
        """The phase as it stands, with its rate and the time left. `free`: of `done`, how many took no time."""
        rate = self.update(done - free)
        return Phase(name, done, total, unit, known, rate, (total - done) / rate if rate else None, left_out)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
