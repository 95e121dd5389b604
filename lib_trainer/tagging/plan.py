"""What thresholds and a style would do to a folder, before anything is written.

`Opened` holds a folder's scores and captions in memory; `preview` answers in tens of milliseconds for 10,000 pictures,
so that it can follow a slider. Tags are compared as numbers: every label and every tag of a caption has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib_trainer.captions.tags import tag_key
from lib_trainer.dataset.scan import Skipped, read_caption
from lib_trainer.errors import DatasetError
from lib_trainer.tagging.choices import How
from lib_trainer.tagging.ensemble import combine
from lib_trainer.tagging.labels import RATING
from lib_trainer.tagging.pictures import caption_path, sharing
from lib_trainer.tagging.store import HAND, ScoreStore
from lib_trainer.tagging.style import Composed, Existing, Guess, Style, compose
from lib_trainer.tagging.table import ScoreTable, Thresholds, select

BORDER = 0.05
"""How near to its line a score is that deserves a look."""

Codes = NDArray[np.int64]
"""Ascending, each once: picture × number of tags + tag."""


@dataclass(frozen=True)
class TagCount:
    """One line of the frequency table. `before`, `after`: pictures whose caption has the tag; of `removed` and
    `added`, `examples` are some rows."""

    tag: str
    before: int
    after: int
    added: int
    removed: int
    examples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What writing would do. `changed`: how many captions get or lose a tag."""

    tags: tuple[TagCount, ...]
    changed: int
    added: int
    removed: int
    untagged: int
    chosen: NDArray[np.bool_] = field(repr=False, compare=False, default_factory=lambda: np.zeros(0, bool))


@dataclass(frozen=True)
class Border:
    """A picture whose score for a tag is near the line."""

    row: int
    tag: str
    score: float
    line: float
    accepted: bool | None


@dataclass(frozen=True)
class Captioned:
    """A picture with the hash of its content and the caption that it has."""

    path: Path
    content: str
    existing: Existing | None


class Opened:
    """A folder's scores by one model or several, and its captions, as they were when it was opened.

    `skipped`: pictures that are not scored, and captions that cannot be read (those are never written over).
    """

    def __init__(
        self,
        store: ScoreStore,
        table: ScoreTable,
        pictures: Sequence[Captioned],
        name: str,
        style: Style,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        """`table`: the scores of `pictures`, in that order, by the model or models called `name`."""
        self.store, self.table, self.name, self.foreign = store, table, name, style.foreign
        self.paths = [picture.path for picture in pictures]
        self.contents = [picture.content for picture in pictures]
        self.existing = [picture.existing for picture in pictures]
        self.skipped = list(skipped)
        self._number_tags()
        self._read_verdicts(store.verdicts())

    @classmethod
    def read(
        cls, store: ScoreStore, pictures: Sequence[Path], models: Sequence[str], style: Style, how: How = "mean"
    ) -> Opened:
        """Everything that the store has of these pictures by all of `models` (fingerprints). Raises `TaggerError`."""
        known = store.known_content(pictures)
        scored = set.intersection(*(store.scored(model) for model in models)) if models else set()
        shared = sharing(pictures, style.template)
        skipped = [Skipped(path, "it has not been scored") for path in pictures if known.get(path) not in scored]
        skipped += [shares(path, first) for path, first in shared.items()]
        wanted = [(p, known[p]) for p in pictures if known.get(p) in scored and p not in shared]
        found, unreadable = read_captions(wanted, style.template, store.key, store.all_origins())
        contents = [picture.content for picture in found]
        names = store.models()
        table = combine([store.table(model, contents) for model in models], how)
        name = " + ".join(names.get(model, model) for model in models)
        return cls(store, table, found, name, style, [*skipped, *unreadable])

    def _number_tags(self) -> None:
        """A number for every tag: labels first (of one key the same), then what only captions have."""
        self.numbers = dict(self.table.labels.index)
        self.names = list(self.table.labels.spaced)
        self._of_label = np.array([self.numbers[key] for key in self.table.labels.keys], dtype=np.int64)
        self._hand: list[tuple[int, int]] = []
        self._machine: list[tuple[int, int]] = []
        self._held: list[tuple[int, int]] = []
        for row, old in enumerate(self.existing):
            if old is None:
                continue
            for tag in old.tags:
                kind = self._machine if old.machine(tag, self.foreign) else self._hand
                kind.append((row, self._number(tag)))
            self._held += [(row, self._number(tag)) for tag in old.head_tags()]

    def _read_verdicts(self, verdicts: Mapping[tuple[str, str], bool]) -> None:
        self.accepted: set[tuple[int, int]] = set()
        self.rejected: set[tuple[int, int]] = set()
        rows: dict[str, list[int]] = {}
        for row, content in enumerate(self.contents):
            rows.setdefault(content, []).append(row)
        for (content, key), accepted in verdicts.items():
            number = self.numbers.get(key)
            if number is not None and number < len(self.table.labels):
                pairs = {(row, number) for row in rows.get(content, [])}
                (self.accepted if accepted else self.rejected).update(pairs)

    def decide(self, row: int, tag: str, accepted: bool | None) -> None:
        """Accept or reject a label for a picture, in memory and in the store."""
        number = self.numbers[tag_key(tag)]
        self.accepted.discard((row, number))
        self.rejected.discard((row, number))
        if accepted is not None:
            (self.accepted if accepted else self.rejected).add((row, number))
        self.store.decide(self.contents[row], tag, accepted)

    # -- the preview ---------------------------------------------------------------------------------------------

    def choose(self, thresholds: Thresholds, style: Style) -> NDArray[np.bool_]:
        """(entries of the table,) what becomes a tag, verdicts included."""
        chosen = select(self.table, thresholds, style.excluded)
        for verdict, pairs in ((True, self.accepted), (False, self.rejected)):
            for row, number in pairs:
                entry = self.table.entry(row, number)
                if entry is not None:
                    chosen[entry] = verdict
        return chosen

    def preview(self, thresholds: Thresholds, style: Style) -> Preview:
        """The frequency table before and after, the most changed tags first."""
        chosen = self.choose(thresholds, style)
        front = [self._number(tag) for tag in style.front]
        self._width = len(self.names)
        before, after = self._before_and_after(chosen, style, front)
        added, removed = _minus(after, before), _minus(before, after)
        width = self._width
        had, has, got, lost = (np.bincount(c % width, minlength=width) for c in (before, after, added, removed))
        changed = np.unique(np.concatenate([added, removed]) // width)
        examples = self._examples(np.concatenate([added, removed]))
        tags = [
            TagCount(self.names[n], int(had[n]), int(has[n]), int(got[n]), int(lost[n]), examples.get(n, ()))
            for n in np.flatnonzero(had + has).tolist()
        ]
        tags.sort(key=lambda line: (-line.after, -line.before, line.tag))
        untagged = len(self.paths) - len(np.unique(after // width))
        return Preview(tuple(tags), len(changed), len(added), len(removed), untagged, chosen)

    def _number(self, tag: str) -> int:
        key = tag_key(tag)
        if key not in self.numbers:
            self.numbers[key] = len(self.names)
            self.names.append(tag)
        return self.numbers[key]

    def _before_and_after(self, chosen: NDArray[np.bool_], style: Style, front: Sequence[int]) -> tuple[Codes, Codes]:
        hand, machine, held = self._codes(self._hand), self._codes(self._machine), self._codes(self._held)
        before = np.union1d(np.union1d(hand, machine), held)
        found = np.unique(self.table.rows[chosen] * self._width + self._of_label[self.table.columns[chosen]])
        rows = np.arange(len(self.paths), dtype=np.int64) * self._width
        put = np.unique((rows[:, None] + np.array(front, dtype=np.int64)[None, :]).ravel())
        keep = before if style.policy in ("prepend", "append", "skip") else np.union1d(hand, held)
        rejected = self._codes(self.rejected)
        after = np.union1d(np.union1d(_minus(keep, rejected), np.union1d(found, put)), held)
        if style.policy == "skip":
            captioned = np.array([bool(old and (old.tags or old.head)) for old in self.existing], dtype=bool)
            after = np.union1d(after[~captioned[after // self._width]], before)
        return before, after

    def _codes(self, pairs: Sequence[tuple[int, int]] | set[tuple[int, int]]) -> Codes:
        if not pairs:
            return np.zeros(0, np.int64)
        array = np.array(list(pairs), dtype=np.int64)
        return np.unique(array[:, 0] * self._width + array[:, 1])

    def _examples(self, codes: Codes, most: int = 8) -> dict[int, tuple[int, ...]]:
        order = np.argsort(codes % self._width, kind="stable")
        tags, rows = (codes % self._width)[order], (codes // self._width)[order]
        starts = np.flatnonzero(np.append(True, tags[1:] != tags[:-1])) if len(tags) else np.zeros(0, np.int64)
        ends = np.append(starts[1:], len(tags))
        return {int(tags[a]): tuple(rows[a : min(b, a + most)].tolist()) for a, b in zip(starts, ends)}

    # -- single pictures -----------------------------------------------------------------------------------------

    def guesses(self, row: int, chosen: NDArray[np.bool_]) -> list[Guess]:
        """What the chosen entries are for one picture, the highest score first; what was accepted is by hand."""
        span = slice(int(self.table.starts[row]), int(self.table.starts[row + 1]))
        labels, found = self.table.labels, []
        for column, score in zip(self.table.columns[span][chosen[span]], self.table.values[span][chosen[span]]):
            by_hand = (row, int(self._of_label[column])) in self.accepted
            origin = HAND if by_hand else f"{self.name} {score:.4f}"
            found.append(Guess(labels.names[column], float(score), origin))
        return sorted(found, key=lambda guess: (-guess.score, guess.name))

    def compose(
        self, row: int, chosen: NDArray[np.bool_], style: Style, frequency: Mapping[str, int] | None = None
    ) -> Composed | None:
        """The caption that a picture gets; None where it stays."""
        rejected = frozenset(tag_key(self.names[number]) for at, number in self.rejected if at == row)
        return compose(self.existing[row], self.guesses(row, chosen), style, frequency, rejected)

    def frequency(self, chosen: NDArray[np.bool_]) -> dict[str, int]:
        """{tag_key: pictures} over what was chosen."""
        counts = np.bincount(self.table.columns[chosen], minlength=len(self.table.labels))
        return {self.table.labels.keys[n]: int(counts[n]) for n in np.flatnonzero(counts).tolist()}

    def borderline(self, thresholds: Thresholds, tag: str = "", width: float = BORDER) -> list[Border]:
        """Pictures whose score for `tag` (empty: any) is within `width` of its line, the nearest first."""
        lines = thresholds.lines(self.table.labels)[self.table.columns]
        near = np.abs(self.table.values - lines) <= width
        near &= self.table.categories != RATING
        if tag:
            near &= self._of_label[self.table.columns] == self.numbers.get(tag_key(tag), -1)
        places = np.flatnonzero(near)
        places = places[np.argsort(np.abs(self.table.values[places] - lines[places]), kind="stable")]
        found = []
        for place in places.tolist():
            row, number = int(self.table.rows[place]), int(self._of_label[self.table.columns[place]])
            accepted = True if (row, number) in self.accepted else False if (row, number) in self.rejected else None
            score, line = float(self.table.values[place]), float(lines[place])
            found.append(Border(row, self.names[number], score, line, accepted))
        return found


def read_captions(
    pictures: Sequence[tuple[Path, str]],
    template: str,
    key: Callable[[Path], str],
    origins: Mapping[str, Mapping[str, str]],
) -> tuple[list[Captioned], list[Skipped]]:
    """(picture, content hash) with their captions, and those whose caption cannot be read: it is never written over."""
    found, unreadable = [], []
    for path, content in pictures:
        try:
            found.append(Captioned(path, content, read_existing(path, template, origins.get(key(path), {}))))
        except DatasetError as error:
            unreadable.append(Skipped(path, str(error)))
    return found, unreadable


def shares(picture: Path, first: Path) -> Skipped:
    return Skipped(picture, f"its caption file belongs to {first.name}")


def read_existing(picture: Path, template: str, origins: Mapping[str, str]) -> Existing | None:
    """The caption beside a picture, None where there is none. Raises `DatasetError` where it cannot be read."""
    path = caption_path(picture, template)
    if not path.exists():
        return None
    return Existing.parse(read_caption(path), origins)


def _minus(one: Codes, other: Codes) -> Codes:
    return np.setdiff1d(one, other, assume_unique=True)
