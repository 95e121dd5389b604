"""Several models' cached scores as one table: nothing is run again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.choices import FLOOR, How
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.scores.table import ScoreTable


def combine(tables: Sequence[ScoreTable], how: How = "mean") -> ScoreTable:
    """One table over the same pictures in the same order, with every label that any of the models knows.

    Labels are the same where their `tag_key` is. Raises `TaggerError` where the tables differ in length.
    """
    if len({len(table) for table in tables}) > 1:
        raise TaggerError("scores.differ")
    if len(tables) == 1:
        return tables[0]
    labels = _united([table.labels for table in tables])
    known = np.zeros(len(labels), np.int64)
    codes, values = [], []
    for table in tables:
        places = np.array([labels.index[key] for key in table.labels.keys], dtype=np.int64)
        known[np.unique(places)] += 1
        own, best = _each_once(table.rows * len(labels) + places[table.columns], table.values)
        codes.append(own)
        values.append(best)
    together, where = np.unique(np.concatenate(codes), return_inverse=True)
    merged = _merged(np.concatenate(values), where, len(together), known[together % len(labels)], how)
    kept = merged >= FLOOR
    together, merged = together[kept], merged[kept]
    starts = np.searchsorted(together, np.arange(len(tables[0]) + 1) * len(labels))
    return ScoreTable(labels, starts.astype(np.int64), (together % len(labels)).astype(np.int32), merged)


def _each_once(codes: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of one model's labels with one key the highest score: it has one vote."""
    found, where = np.unique(codes, return_inverse=True)
    best = np.zeros(len(found), np.float32)
    np.maximum.at(best, where, values)
    return found, best


def _merged(
    values: NDArray[np.float32], where: NDArray[np.int64], count: int, known: NDArray[np.int64], how: How
) -> NDArray[np.float32]:
    votes = np.bincount(where, minlength=count)
    if how == "mean":
        result = np.bincount(where, weights=values, minlength=count) / known
    elif how == "union":
        result = np.zeros(count)
        np.maximum.at(result, where, values)
    else:
        result = np.full(count, np.inf)
        np.minimum.at(result, where, values)
        result[votes < known] = 0.0
    return result.astype(np.float32)


def _united(all_labels: Sequence[Labels]) -> Labels:
    """Every label once, in the order of first appearance."""
    seen: dict[str, tuple[str, int, int]] = {}
    for labels in all_labels:
        counts = labels.counts or (0,) * len(labels)
        for key, row in zip(labels.keys, zip(labels.names, labels.categories, counts)):
            seen.setdefault(key, row)
    names, categories, counts = zip(*seen.values())
    return Labels(names, categories, counts)
