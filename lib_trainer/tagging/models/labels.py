"""What a tagger's outputs mean: `selected_tags.csv`, columns `tag_id,name,category,count`, one row an output."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib_trainer.captions.tags import TagPatterns, tag_key, with_spaces
from lib_trainer.refusals import Count, TaggerError

GENERAL, CHARACTER, RATING = 0, 4, 9
"""Danbooru's numbers of categories, and WD's for ratings. Any other number counts as general."""

MOST = 1 << 16
"""Labels of a model: scores are kept under numbers of 16 bits (`scores.store`)."""


@dataclass(frozen=True)
class Labels:
    """The labels in the order of the outputs. `names` are spelt as in the file, with underscores."""

    names: tuple[str, ...]
    categories: tuple[int, ...]
    counts: tuple[int, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def spaced(self) -> tuple[str, ...]:
        """The names with spaces, kaomoji kept."""
        return tuple(with_spaces(name) for name in self.names)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(tag_key(name) for name in self.names)

    @cached_property
    def category_array(self) -> NDArray[np.int16]:
        """(L,) with 0, 4 or 9."""
        known = [category if category in (CHARACTER, RATING) else GENERAL for category in self.categories]
        return np.array(known, dtype=np.int16)

    @cached_property
    def index(self) -> dict[str, int]:
        """{tag_key: output}; of two labels with one key the first."""
        found: dict[str, int] = {}
        for number, key in enumerate(self.keys):
            found.setdefault(key, number)
        return found

    @cached_property
    def _matched(self) -> dict[TagPatterns, NDArray[np.bool_]]:
        return {}

    def matching(self, patterns: TagPatterns) -> NDArray[np.bool_]:
        """(L,) which labels a list of patterns means; the last few lists are remembered, for a slider that moves.

        Raises `ConfigError` for an expression that takes too long.
        """
        if patterns not in self._matched:
            while len(self._matched) >= 4:
                self._matched.pop(next(iter(self._matched)))
            self._matched[patterns] = np.array([patterns.matches(name) for name in self.names], dtype=bool)
        return self._matched[patterns]


def read_labels(path: Path) -> Labels:
    """Read a `selected_tags.csv`.

    Blank rows are passed by, numbers may be written as floats (`9999999.0`), names may be quoted. Raises `TaggerError`
    where the file cannot be read, is not such a list or has more than `MOST` rows.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TaggerError("labels.unreadable", path=path, reason=error) from error
    except UnicodeDecodeError:
        raise TaggerError("labels.not_text", path=path) from None
    try:
        rows = list(_rows(text, path))
    except csv.Error as error:  # a cell of more than 128 KiB; under Python 3.10 a zero byte too
        raise TaggerError("labels.unreadable", path=path, reason=error) from error
    if not rows:
        raise TaggerError("labels.empty", path=path)
    if len(rows) > MOST:
        raise TaggerError("labels.many", path=path, count=Count(len(rows)), most=Count(MOST))
    names, categories, counts = zip(*rows)
    return Labels(names, categories, counts)


def _rows(text: str, path: Path) -> Iterator[tuple[str, int, int]]:
    reader = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(reader, [])]
    if not {"name", "category"} <= set(header):
        raise TaggerError("labels.not_one", path=path)
    name, category = header.index("name"), header.index("category")
    count = header.index("count") if "count" in header else None
    for line, row in enumerate(reader, 2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            if not row[name].strip():
                raise ValueError
            yield row[name].strip(), _number(row, category), 0 if count is None else _number(row, count)
        except (IndexError, ValueError, OverflowError):
            raise TaggerError("labels.line", line=line, path=path) from None


def _number(row: Sequence[str], column: int) -> int:
    return int(float(row[column])) if column < len(row) and row[column].strip() else 0
