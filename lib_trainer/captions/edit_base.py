"""What every edit of captions is made of: what it is told, how it is declared, and a memory for expressions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lib_trainer.captions.document import KEEP, Caption, cached_key
from lib_trainer.captions.tags import split_tags
from lib_trainer.refusals import ConfigError, Field

BATCH_SECONDS = 20.0
"""How long the regular expression of one edit may run over a whole set."""


@dataclass(frozen=True)
class Facts:
    """What an edit may know of the set and the picture besides the caption.

    `counts`: {tag_key: on how many pictures of the scope it stands}; `total`: pictures in the scope. `scores`: the
    tagger's scores of this picture, {tag_key: 0 to 1}; `by_hand`: keys of the tags that a person
    wrote, as far as known.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    by_hand: frozenset[str] = frozenset()


class Edit(Protocol):
    """Turns a caption into another. Raises `ConfigError` for values that cannot be meant."""

    @property
    def needs_scores(self) -> bool: ...

    def check(self) -> None: ...

    def label(self) -> str:
        """What was done, for the history."""

    def apply(self, caption: Caption, facts: Facts) -> Caption: ...


def count_tags(captions: Iterable[Caption]) -> Counter[str]:
    """{tag_key: on how many captions it stands}."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(set(map(cached_key, caption.tags)))
    return counts


def single_tags(text: str, what: str) -> list[str]:
    """The tags of a comma-separated text. Raises `ConfigError` naming `what` where there is none."""
    tags = [tag for line in text.splitlines() for tag in split_tags(line)]
    if not tags:
        raise ConfigError("edit.no_tags", field=Field("", what))
    if any(KEEP in tag for tag in tags):
        raise ConfigError("edit.separator", field=Field("", what), separator=KEEP)
    return tags


@dataclass(frozen=True)
class Plain:
    needs_scores = False
    """Whether it reads the tagger's scores and origins, which are looked up picture by picture."""

    def check(self) -> None:
        """Most edits cannot be wrong."""


class Memory(dict[str, Any]):
    """A function of a text, asked once for each text, with a time limit over all of them."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        super().__init__()
        self._function, self._spent = function, 0.0

    def __missing__(self, text: str) -> Any:
        if self._spent > BATCH_SECONDS:
            raise ConfigError("expression.too_slow_on_set")
        started = time.monotonic()
        self[text] = answer = self._function(text)
        self._spent += time.monotonic() - started
        return answer

    def __call__(self, text: str) -> Any:
        return self[text]
