"""What an edit would do, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lib_trainer.captions.document import Caption
from lib_trainer.dataset.file_moves import Move, Step


@dataclass(frozen=True)
class Altered:
    """One caption before and after; `keys` are the pictures it belongs to."""

    path: str
    keys: tuple[str, ...]
    before: Caption
    after: Caption


@dataclass(frozen=True)
class Preview:
    """What an edit would do: nothing has been written. `total`: captions that were looked at. `steps`: what it does to
    files beside the captions of `altered`: moves, and captions that could not be read."""

    label: str
    altered: tuple[Altered, ...]
    total: int
    revision: int = 0
    steps: tuple[Step, ...] = ()

    @property
    def moved(self) -> list[str]:
        """The files that would change their place."""
        return [step.path for step in self.steps if isinstance(step, Move)]

    def gone(self) -> Counter[str]:
        """{tag_key: from how many captions it would vanish}."""
        return _difference(self.altered, lambda one: (one.before, one.after))

    def added(self) -> Counter[str]:
        """{tag_key: in how many captions it would be new}."""
        return _difference(self.altered, lambda one: (one.after, one.before))


def _difference(altered: Iterable[Altered], sides: Callable[[Altered], tuple[Caption, Caption]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for one in altered:
        more, less = sides(one)
        counts.update(set(more.keys) - set(less.keys))
    return counts
