"""How scoring and writing ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.folder import Skipped


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
