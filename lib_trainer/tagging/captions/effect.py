"""What thresholds and a style would do to a folder, before anything is written.

`Opened` holds a folder's scores and captions in memory; `preview` answers in tens of milliseconds for 10,000 pictures,
so that it can follow a slider. Tags are compared as numbers: every label and every tag of a caption has one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib_trainer.captions.tags import tag_key
from lib_trainer.dataset.folder import Skipped
from lib_trainer.refusals import Sentence
from lib_trainer.tagging.captions.existing import Captioned, read_captions, shares
from lib_trainer.tagging.captions.style import Composed, Guess, Style, compose
from lib_trainer.tagging.choices import How
from lib_trainer.tagging.models.labels import RATING
from lib_trainer.tagging.pictures import CaptionPlaces
from lib_trainer.tagging.scores.ensemble import combine
from lib_trainer.tagging.scores.store import HAND, ScoreStore, origins_of, removed_of
from lib_trainer.tagging.scores.table import ScoreTable, Thresholds, lines_of, select

BORDER = 0.05
"""How near to its line a score is that deserves a look."""

UNSCORED = Sentence("scores.none_of_picture")
"""Why a picture has no tags yet."""

KEPT_PREVIEWS = 2
"""What the last settings of so many pages would do is remembered."""

SPARE = 256
"""Numbers kept free for tags that are typed later, before everything is numbered anew."""

Codes = NDArray[np.int64]
"""Ascending, each once: picture × number of tags + tag."""


@dataclass(frozen=True)
class TagCount:
    """One line of the frequency table. `before`, `after`: pictures whose caption has the tag."""

    tag: str
    before: int
    after: int
    added: int
    removed: int


@dataclass(frozen=True)
class Preview:
    """What writing would do. `changed`: how many captions get or lose a tag. `withheld`: tags that pass their lines and
    stay away, as they were removed by hand. `chosen`: which of the table's entries become tags; `moved`: picture and
    number of each tag that comes or goes."""

    tags: tuple[TagCount, ...]
    changed: int
    added: int
    removed: int
    untagged: int
    withheld: int
    chosen: NDArray[np.bool_] = field(repr=False, compare=False)
    moved: tuple[NDArray[np.int64], NDArray[np.int64]] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Border:
    """A picture whose score for a tag is near the line."""

    row: int
    tag: str
    score: float
    line: float
    accepted: bool | None


@dataclass(frozen=True)
class _Held:
    """What the captions hold: all of it, what a tagger may take away, and what stands before the separator."""

    width: int
    before: Codes
    machine: Codes
    head: Codes


class Opened:
    """A folder's scores by one model or several, and its captions, as they were when it was opened.

    `skipped`: pictures that are not scored, and captions that cannot be read (those are never written over).
    `revision`: of the set's history when the captions were read. Any thread may use it.
    """

    def __init__(
        self,
        store: ScoreStore,
        table: ScoreTable,
        pictures: Sequence[Captioned],
        name: str,
        style: Style,
        skipped: Sequence[Skipped] = (),
        said: Mapping[str, Mapping[str, str]] | None = None,
        revision: int = 0,
    ) -> None:
        """`table`: the scores of `pictures`, in that order, by the model or models called `name`. `said`: what the
        store has recorded of their tags (`ScoreStore.said_of`)."""
        self.store, self.table, self.name, self.foreign = store, table, name, style.foreign
        self.revision = revision
        self._lock = threading.RLock()
        self._previews: list[tuple[object, Preview]] = []
        self._verdicts = 0
        self.paths = [picture.path for picture in pictures]
        self.contents = [picture.content for picture in pictures]
        self.existing = [picture.existing for picture in pictures]
        self.skipped = list(skipped)
        self._number_tags()
        self._read_verdicts(store.verdicts())
        self._removed = self._entries_of(self._read_removed(said or {}))
        self._held_codes()

    @classmethod
    def read(
        cls, store: ScoreStore, pictures: Sequence[Path], models: Sequence[str], style: Style, how: How = "mean"
    ) -> Opened:
        """Everything that the store has of these pictures by all of `models` (fingerprints). Raises `TaggerError`."""
        revision = store.history.revision
        known = store.known_content(pictures)
        scored = set.intersection(*(store.scored(model) for model in models)) if models else set()
        places = CaptionPlaces(style.template)
        shared = places.sharing(pictures)
        skipped = [Skipped(path, UNSCORED) for path in pictures if known.get(path) not in scored]
        skipped += [shares(path, first) for path, first in shared.items()]
        wanted = [(p, known[p]) for p in pictures if known.get(p) in scored and p not in shared]
        said = store.said_of(pictures, {path: places.path(path) for path in pictures})
        origins = {key: origins_of(tags) for key, tags in said.items()}
        found, unreadable = read_captions(wanted, places, store.key, origins)
        contents = [picture.content for picture in found]
        names = store.models()
        table = combine([store.table(model, contents) for model in models], how)
        name = " + ".join(names.get(model, model) for model in models)
        return cls(store, table, found, name, style, [*skipped, *unreadable], said, revision)

    def _number_tags(self) -> None:
        """A number for every tag: labels first (of one key the same), then what only captions have."""
        self.numbers = dict(self.table.labels.index)
        self.names = list(self.table.labels.spaced)
        self._of_label = np.array([self.numbers[key] for key in self.table.labels.keys], dtype=np.int64)
        self._hand: list[tuple[int, int]] = []
        self._machine: list[tuple[int, int]] = []
        self._head: list[tuple[int, int]] = []
        self._codes: _Held | None = None
        for row, old in enumerate(self.existing):
            if old is None:
                continue
            for tag in old.tags:
                kind = self._machine if old.machine(tag, self.foreign) else self._hand
                kind.append((row, self._number(tag)))
            self._head += [(row, self._number(tag)) for tag in old.head_tags()]

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

    def _read_removed(self, said: Mapping[str, Mapping[str, str]]) -> list[tuple[int, int]]:
        """(picture, label) of the tags that a person has taken away."""
        found = []
        for row, (path, old) in enumerate(zip(self.paths, self.existing) if said else ()):
            tags = said.get(self.store.key(path))
            if tags:
                there = {tag_key(tag) for tag in [*old.tags, *old.head_tags()]} if old else set()
                found += [(row, self.numbers[key]) for key in removed_of(tags, there) if key in self.numbers]
        return [(row, number) for row, number in found if number < len(self.table.labels)]

    def _entries_of(self, pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """The table's entries of (picture, label)."""
        width = len(self.names)
        codes = self.table.rows * width + self._of_label[self.table.columns]
        wanted = np.array([row * width + number for row, number in pairs], np.int64)
        return np.flatnonzero(np.isin(codes, wanted)) if len(wanted) else wanted

    def decide(self, row: int, tag: str, accepted: bool | None) -> None:
        """Accept or reject a label for a picture, in memory and in the store."""
        with self._lock:
            number = self.numbers[tag_key(tag)]
            self.store.decide(self.contents[row], tag, accepted)
            self.accepted.discard((row, number))
            self.rejected.discard((row, number))
            if accepted is not None:
                (self.accepted if accepted else self.rejected).add((row, number))
            self._verdicts += 1

    # -- the preview ---------------------------------------------------------------------------------------------

    def choose(self, thresholds: Thresholds, style: Style) -> NDArray[np.bool_]:
        """(entries of the table,) what becomes a tag: what passes its line, without what was removed by hand, and the
        verdicts."""
        return self._choose(thresholds, style)[0]

    def _choose(self, thresholds: Thresholds, style: Style) -> tuple[NDArray[np.bool_], int]:
        """As `choose`, and how many tags are withheld."""
        chosen, withheld = select(self.table, thresholds, style.excluded), 0
        if not style.restore and len(self._removed):
            withheld = int(chosen[self._removed].sum())
            chosen[self._removed] = False
        with self._lock:
            verdicts = [(True, pair) for pair in self.accepted] + [(False, pair) for pair in self.rejected]
        for verdict, (row, number) in verdicts:
            entry = self.table.entry(row, number)
            if entry is not None:
                chosen[entry] = verdict
        return chosen, withheld

    def preview(self, thresholds: Thresholds, style: Style) -> Preview:
        """The frequency table before and after, the commonest tags first."""
        with self._lock:
            key = (thresholds, style, self._verdicts)
            known = next((preview for settings, preview in self._previews if settings == key), None)
            if known is None:
                known = self._preview(thresholds, style)
                self._previews = [(key, known), *self._previews][:KEPT_PREVIEWS]
            return known

    def _preview(self, thresholds: Thresholds, style: Style) -> Preview:
        chosen, withheld = self._choose(thresholds, style)
        front = [self._number(tag) for tag in style.front]
        held = self._held_codes()
        width = held.width
        added, removed = self._moved(held, chosen, style, front)
        had = np.bincount(held.before % width, minlength=width)
        got, lost = np.bincount(added % width, minlength=width), np.bincount(removed % width, minlength=width)
        rows, pictures = (np.append(added, removed) // width), len(self.paths)
        each = np.bincount(held.before // width, minlength=pictures) + np.bincount(added // width, minlength=pictures)
        each -= np.bincount(removed // width, minlength=pictures)
        tags = [
            TagCount(self.names[n], *counts)
            for n, *counts in np.stack([np.arange(width), had, had + got - lost, got, lost], 1)[had + got > 0].tolist()
        ]
        tags.sort(key=lambda line: (-line.after, -line.before, line.tag))
        moved = (rows, np.append(added, removed) % width)
        changed, untagged = len(np.unique(rows)), int((each == 0).sum())
        return Preview(tuple(tags), changed, len(added), len(removed), untagged, withheld, chosen, moved)

    def examples(self, preview: Preview, tag: str, most: int = 8) -> list[int]:
        """Some pictures whose caption gets or loses a tag."""
        rows, numbers = preview.moved
        return sorted(rows[numbers == self.numbers.get(tag_key(tag), -1)][:most].tolist())

    def _number(self, tag: str) -> int:
        key = tag_key(tag)
        if key not in self.numbers:
            self.numbers[key] = len(self.names)
            self.names.append(tag)
        return self.numbers[key]

    def _held_codes(self) -> _Held:
        """What the captions hold, as codes; made once, and again where there are more tags than room for them."""
        if self._codes is None or self._codes.width < len(self.names):
            width = len(self.names) + SPARE
            hand, machine, head = (_codes(pairs, width) for pairs in (self._hand, self._machine, self._head))
            before = np.unique(np.concatenate([hand, machine, head]))
            self._codes = _Held(width, before, _minus(machine, head), head)
        return self._codes

    def _moved(self, held: _Held, chosen: NDArray[np.bool_], style: Style, front: Sequence[int]) -> tuple[Codes, Codes]:
        """What comes and what goes."""
        width, pictures = held.width, len(self.paths)
        found = self.table.rows[chosen] * width + self._of_label[self.table.columns[chosen]]
        if (np.diff(found) <= 0).any():  # two labels with one key
            found = np.unique(found)
        put = (np.arange(pictures)[:, None] * width + np.array(front, np.int64)[None, :]).ravel()
        coming = found if not len(put) else np.unique(np.append(found, put))
        added = _minus(coming, held.before)
        if style.policy == "skip":
            captioned = np.array([bool(old and (old.tags or old.head)) for old in self.existing], dtype=bool)
            return added[~captioned[added // width]], np.zeros(0, np.int64)
        going = _codes(self.rejected, width)
        going = going[_within(going, held.before) & ~_within(going, put)]
        going = going[~_within(going, held.head)]
        if style.policy in ("replace", "merge"):
            going = np.union1d(going, _minus(held.machine, coming))
        return added, going

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
        with self._lock:
            rejected = frozenset(tag_key(self.names[number]) for at, number in self.rejected if at == row)
        return compose(self.existing[row], self.guesses(row, chosen), style, frequency, rejected)

    def frequency(self, chosen: NDArray[np.bool_]) -> dict[str, int]:
        """{tag_key: pictures} over what was chosen."""
        counts = np.bincount(self.table.columns[chosen], minlength=len(self.table.labels))
        return {self.table.labels.keys[n]: int(counts[n]) for n in np.flatnonzero(counts).tolist()}

    def borderline(self, thresholds: Thresholds, tag: str = "", width: float = BORDER) -> list[Border]:
        """Pictures whose score for `tag` (empty: any) is within `width` of its line, the nearest first."""
        lines = lines_of(self.table, thresholds)
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


def _codes(pairs: Iterable[tuple[int, int]], width: int) -> Codes:
    array = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    return np.unique(array[:, 0] * width + array[:, 1])


def _within(one: Codes, other: Codes) -> NDArray[np.bool_]:
    """Which of `one` are in `other`; both ascend."""
    if not len(other):
        return np.zeros(len(one), dtype=bool)
    places = np.minimum(np.searchsorted(other, one), len(other) - 1)
    result: NDArray[np.bool_] = other[places] == one
    return result


def _minus(one: Codes, other: Codes) -> Codes:
    return one[~_within(one, other)]
