"""What a batch tells while it runs."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.folder import Skipped

WINDOW_SECONDS = 20.0


@dataclass(frozen=True)
class Progress:
    """`done` of `total` items; of those `cached` cost nothing. `rate`: items a second lately; `left`: seconds."""

    what: str
    done: int
    total: int
    cached: int = 0
    skipped: tuple[Skipped, ...] = ()
    rate: float = 0.0
    left: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class ScoreReport:
    """How scoring ended. `scored`: newly, `cached`: known before, `animated`: of the new ones those of several frames,
    of which the first was scored."""

    total: int
    scored: int
    cached: int
    skipped: tuple[Skipped, ...]
    stopped: bool
    seconds: float
    name: str = ""
    device: str = ""
    notes: tuple[str, ...] = ()
    animated: tuple[Path, ...] = ()


@dataclass(frozen=True)
class WriteReport:
    """How writing ended. `written` captions were changed, `reordered` of them only in order or spelling; `unchanged`
    were not, `failed` could not be."""

    written: int
    unchanged: int
    failed: tuple[Skipped, ...]
    stopped: bool
    first: Path | None = None
    reordered: int = 0

    @property
    def sentence(self) -> str:
        """What was written, for the user."""
        order = f" ({self.reordered} of them only in order or spelling)" if self.reordered else ""
        return f"{self.written} captions written{order}, {self.unchanged} were right already."


class Meter:
    """Items a second over the last seconds, and the time that is left."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self.started, 0)])

    def update(self, done: int) -> float:
        """Tell how many items are done; returns the rate."""
        now = time.monotonic()
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW_SECONDS:
            self._marks.popleft()
        (before, earlier), (last, latest) = self._marks[0], self._marks[-1]
        return (latest - earlier) / (last - before) if last > before else 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
