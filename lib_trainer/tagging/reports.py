"""How scoring and writing ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.folder import Skipped
from lib_trainer.refusals import Sentence


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
    notes: tuple[Sentence, ...] = ()
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
    def sentence(self) -> Sentence:
        """What was written, for the user."""
        if self.reordered:
            return Sentence(
                "writing.done_and_ordered", written=self.written, reordered=self.reordered, unchanged=self.unchanged
            )
        return Sentence("writing.done", written=self.written, unchanged=self.unchanged)
