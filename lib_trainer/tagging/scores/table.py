"""The scores of many pictures in three arrays, and thresholds over them: fast enough to follow a slider.

Scores below `FLOOR` are not kept, wherever scores come from, so that a fresh run and a cached one see the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lib_trainer.captions.tags import TagPatterns, tag_key
from lib_trainer.refusals import ConfigError
from lib_trainer.tagging.choices import DEFAULT_CHARACTER_THRESHOLD, DEFAULT_THRESHOLD, FLOOR
from lib_trainer.tagging.models.labels import CHARACTER, GENERAL, RATING, Labels

MCUT_CHARACTER_FLOOR = 0.15
"""What MCut's own threshold for characters is raised to, as the reference demo has it."""

Rows = tuple[NDArray[np.uint16], NDArray[np.float32]]
"""One picture's kept scores: outputs (ascending) and values."""


def sparse(scores: NDArray[np.float32]) -> Rows:
    """(L,) probabilities → the outputs at or above FLOOR, and their scores."""
    kept = np.flatnonzero(scores >= FLOOR)
    return kept.astype(np.uint16), scores[kept].astype(np.float32)


@dataclass(frozen=True)
class ScoreTable:
    """Kept scores of n pictures, compressed by rows: those of picture i are at `starts[i]` to `starts[i + 1]`."""

    labels: Labels
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, labels: Labels, pictures: Sequence[Rows]) -> ScoreTable:
        counts = np.array([len(columns) for columns, _ in pictures], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        columns = np.concatenate([np.zeros(0, np.int32), *(columns for columns, _ in pictures)]).astype(np.int32)
        values = np.concatenate([np.zeros(0, np.float32), *(values for _, values in pictures)]).astype(np.float32)
        return cls(labels, starts, columns, values)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(entries,) the picture that each entry belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def categories(self) -> NDArray[np.int16]:
        """(entries,)"""
        result: NDArray[np.int16] = self.labels.category_array[self.columns]
        return result

    @cached_property
    def mcut_lines(self) -> dict[int, NDArray[np.float64]]:
        """{category: (pictures,) each one's own line}; it depends on nothing that can be set, so it is found once."""
        lines = {}
        for category in (GENERAL, CHARACTER):
            part = np.flatnonzero(self.categories == category)
            lines[category] = _mcut_lines(self.rows[part], self.values[part], len(self))
        return lines

    def scores_of(self, row: int) -> dict[str, float]:
        """{tag with spaces: score} of one picture."""
        span = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return {self.labels.spaced[c]: float(v) for c, v in zip(self.columns[span], self.values[span])}

    def entry(self, row: int, column: int) -> int | None:
        """The place of one picture's score for one label; None where it was below FLOOR."""
        low, high = int(self.starts[row]), int(self.starts[row + 1])
        place = low + int(np.searchsorted(self.columns[low:high], column))
        return place if place < high and self.columns[place] == column else None


@dataclass(frozen=True)
class Thresholds:
    """Which scores make a tag. A score must be above its line.

    `general`, `character`: 0.01 to 1. `mcut_general`, `mcut_character`: each picture's own line by MCut instead.
    `ratings`: whether the likeliest rating becomes a tag. `overrides`: {tag in any spelling: line}.
    """

    general: float = DEFAULT_THRESHOLD
    character: float = DEFAULT_CHARACTER_THRESHOLD
    mcut_general: bool = False
    mcut_character: bool = False
    ratings: bool = False
    overrides: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not FLOOR <= self.general <= 1:
            raise ConfigError("threshold.general", value=self.general, floor=FLOOR)
        if not FLOOR <= self.character <= 1:
            raise ConfigError("threshold.character", value=self.character, floor=FLOOR)
        for tag, value in self.overrides.items():
            if not FLOOR <= value <= 1:
                raise ConfigError("threshold.of_tag", tag=tag, value=value, floor=FLOOR)

    def lines(self, labels: Labels) -> NDArray[np.float32]:
        """(L,) the line of each label; ratings have none (infinity)."""
        by_category = {GENERAL: self.general, CHARACTER: self.character, RATING: np.inf}
        lines = np.array([by_category[int(c)] for c in labels.category_array], dtype=np.float32)
        for tag, value in self.overrides.items():
            number = labels.index.get(tag_key(tag))
            if number is not None:
                lines[number] = value
        return lines


def parse_overrides(text: str) -> dict[str, float]:
    """`long hair: 0.5` a line (or separated by commas; `=` will do) → {'long hair': 0.5}.

    A tag may itself hold a colon (`:d: 0.5`): the last one counts. Raises `ConfigError` naming the entry.
    """
    found: dict[str, float] = {}
    for entry in (part.strip() for line in text.splitlines() for part in line.split(",")):
        if not entry:
            continue
        tag, mark, number = entry.rpartition("=" if "=" in entry and ":" not in entry.rsplit("=", 1)[1] else ":")
        try:
            value = float(number)
        except ValueError:
            mark = ""
        if not mark or not tag.strip():
            raise ConfigError("threshold.entry", entry=entry)
        found[tag.strip()] = value
    return found


def lines_of(table: ScoreTable, thresholds: Thresholds) -> NDArray[np.float64]:
    """(entries,) the line that each entry has to pass: of its tag, of its category, or of its picture by MCut."""
    labels = table.labels
    lines: NDArray[np.float64] = thresholds.lines(labels).astype(np.float64)[table.columns]
    own = np.zeros(len(labels), dtype=bool)
    own[[labels.index[key] for key in map(tag_key, thresholds.overrides) if key in labels.index]] = True
    for category, wanted, floor in (
        (GENERAL, thresholds.mcut_general, 0.0),
        (CHARACTER, thresholds.mcut_character, MCUT_CHARACTER_FLOOR),
    ):
        if wanted:
            part = np.flatnonzero((table.categories == category) & ~own[table.columns])
            lines[part] = np.maximum(table.mcut_lines[category], floor)[table.rows[part]]
    return lines


def select(table: ScoreTable, thresholds: Thresholds, excluded: TagPatterns | None = None) -> NDArray[np.bool_]:
    """(entries,) which entries become tags."""
    chosen: NDArray[np.bool_] = table.values > lines_of(table, thresholds)
    if thresholds.ratings:
        part = np.flatnonzero(table.categories == RATING)
        chosen[part[_first_of_highest(table.rows[part], table.values[part])]] = True
    if excluded:
        chosen &= ~table.labels.matching(excluded)[table.columns]
    return chosen


def _mcut_lines(rows: NDArray[np.int64], values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """(count,) the line of MCut (Largeron, Moulin and Géry 2012) for each row: the middle of the widest gap between its
    sorted scores; infinity for a row without scores.

    `rows` ascends. Below the lowest of a row's `values` stands 0, for what was not kept.
    """
    lines = np.full(count, np.inf)
    if not len(rows):
        return lines
    order = np.argsort(rows + (1.0 - values.astype(np.float64)))  # by picture, then the highest score first
    rows, ordered = rows[order], values[order].astype(np.float64)
    following = np.append(ordered[1:], 0.0)
    following[np.append(rows[1:] != rows[:-1], True)] = 0.0
    widest = _first_of_highest(rows, (ordered - following).astype(np.float64))
    lines[rows[widest]] = (ordered[widest] + following[widest]) / 2
    return lines


def _first_of_highest(rows: NDArray[np.int64], values: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row that occurs, the place of its highest value, of equal ones the first. `rows` ascends."""
    if not len(rows):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
    highest = np.maximum.reduceat(values, starts)
    counts = np.diff(np.append(starts, len(rows)))
    places = np.flatnonzero(values == np.repeat(highest, counts))
    _, first = np.unique(rows[places], return_index=True)
    result: NDArray[np.int64] = places[first]
    return result
