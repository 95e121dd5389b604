"""Thresholds over many pictures at once, against the plain definition for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_trainer.captions.tags import TagPatterns
from lib_trainer.refusals import ConfigError, TaggerError
from lib_trainer.tagging.choices import FLOOR
from lib_trainer.tagging.models.labels import CHARACTER, GENERAL, RATING, Labels
from lib_trainer.tagging.scores.ensemble import combine
from lib_trainer.tagging.scores.table import ScoreTable, Thresholds, _mcut_lines, parse_overrides, select, sparse

LABELS = Labels(("safe", "lewd", "long_hair", ">_<", "sword", "hat", "rin", "saber_(fate)"), (9, 9, 0, 0, 0, 0, 4, 4))
DENSE = st.lists(
    st.lists(
        st.sampled_from([0.0, 0.004, 0.01, 0.02, 0.2, 0.3, 0.35, 0.351, 0.5, 0.8, 0.86, 0.99]), min_size=8, max_size=8
    ),
    max_size=6,
)


def table_of(dense: Any, labels: Labels = LABELS) -> ScoreTable:
    return ScoreTable.of(labels, [sparse(np.array(row, np.float32)) for row in dense])


def chosen_names(table: ScoreTable, thresholds: Thresholds, excluded: str = "") -> list[set[str]]:
    mask = select(table, thresholds, TagPatterns.parse(excluded))
    return [{table.labels.names[c] for c in table.columns[(table.rows == row) & mask]} for row in range(len(table))]


def reference_mcut(scores: np.ndarray[Any, Any]) -> float:
    """The demo's: sort all, the widest gap, its middle."""
    ordered = np.sort(scores)[::-1]
    gaps = ordered[:-1] - ordered[1:]
    place = int(gaps.argmax())
    return float((ordered[place] + ordered[place + 1]) / 2)


def one_picture(row: list[float], thresholds: Thresholds) -> set[str]:
    """The definition, tag by tag."""
    scores = np.array(row, np.float32)
    result = set()
    for name, category, score in zip(LABELS.names, LABELS.categories, scores):
        own = {"long hair": "long_hair", "rin": "rin"}
        override = next((v for k, v in thresholds.overrides.items() if own.get(k) == name), None)
        line = {GENERAL: thresholds.general, CHARACTER: thresholds.character, RATING: np.inf}[category]
        if override is not None:
            line = override
        if score >= np.float32(FLOOR) and score > np.float32(line):
            result.add(name)
    if thresholds.ratings and scores[:2].max() >= np.float32(FLOOR):
        result.add(LABELS.names[int(scores[:2].argmax())])
    return result


@settings(max_examples=40)
@given(DENSE, st.sampled_from([0.01, 0.2, 0.35, 0.5]), st.sampled_from([0.3, 0.85]), st.booleans())
def test_all_pictures_at_once_as_each_alone(
    dense: list[list[float]], general: float, character: float, ratings: bool
) -> None:
    thresholds = Thresholds(general, character, ratings=ratings, overrides={"long hair": 0.8, "rin": 0.02})
    assert chosen_names(table_of(dense), thresholds) == [one_picture(row, thresholds) for row in dense]


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30, unique=True))
def test_mcut_chooses_what_the_demo_chooses(values: list[float]) -> None:
    """On the kept scores alone. Where the widest gap lies among those that are not kept, nothing is kept either."""
    scores = np.array(values, np.float32)
    kept = np.sort(scores[scores >= FLOOR])[::-1]
    gaps = np.append(-np.diff(kept), kept[-1:] - scores[scores < FLOOR].max(initial=0.0))
    if len(gaps) < 2 or np.sort(gaps)[-1] - np.sort(gaps)[-2] < FLOOR:
        return  # the place of the widest gap is open by as much as was cut off
    wanted = set(np.flatnonzero(scores > reference_mcut(np.append(scores, 0.0))))
    assert set(np.flatnonzero(scores > _mcut_lines(np.zeros(len(kept), np.int64), kept, 1)[0])) == wanted


def test_mcut_for_characters_has_a_floor() -> None:
    row = [0.9, 0, 0.9, 0.8, 0.3, 0.28, 0.12, 0.02]
    both = Thresholds(mcut_general=True, mcut_character=True)
    assert chosen_names(table_of([row]), both) == [{"long_hair", ">_<"}], "rin is below 0.15"
    row[6] = 0.2
    assert "rin" in chosen_names(table_of([row]), both)[0]


def test_an_override_wins_over_mcut() -> None:
    row = [0.9, 0, 0.9, 0.8, 0.3, 0.28, 0.12, 0.02]
    thresholds = Thresholds(mcut_general=True, overrides={"SWORD": 0.25, "long_hair": 0.95})
    assert chosen_names(table_of([row]), thresholds) == [{">_<", "sword"}]


@pytest.mark.parametrize("excluded", ["long hair", "long_hair", "LONG HAIR", "long *", "/^long/"])
def test_every_spelling_of_an_exclusion_counts(excluded: str) -> None:
    """T's exclude list misses 'long hair'."""
    row = [0.9, 0, 0.9, 0.8, 0, 0, 0, 0]
    assert chosen_names(table_of([row]), Thresholds(), excluded) == [{">_<"}]


def test_lists_are_remembered_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels(LABELS.names, LABELS.categories)
    lists = [TagPatterns.parse(text) for text in ("hat", "sword", "* hair", "/rin/", "rin, hat", "hat")]
    found = [labels.matching(patterns).sum() for patterns in lists]
    assert found == [1, 1, 1, 1, 2, 1]
    assert labels.matching(lists[0]) is labels.matching(TagPatterns.parse("hat"))


def test_an_excluded_tag_that_is_absent_is_no_error() -> None:
    """L raises KeyError."""
    assert chosen_names(table_of([[0.9] * 8]), Thresholds(0.95, 0.95), "nonsense, hat") == [set()]


@pytest.mark.parametrize("field", ["general", "character"])
@pytest.mark.parametrize("value", [0.0, 1.5, -1, float("nan")])
def test_a_line_out_of_range_names_itself(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"The {field} threshold is"):
        Thresholds(**{field: value})
    assert getattr(Thresholds(**{field: 1.0}), field) == 1


def test_overrides_as_people_write_them() -> None:
    assert parse_overrides("long hair: 0.5\nsword=0.2, :d: 0.3\n\n") == {"long hair": 0.5, "sword": 0.2, ":d": 0.3}
    for text in ("long hair", ": 0.5", "hat: high"):
        with pytest.raises(ConfigError, match=rf"'{text}' is not an entry: write 'long hair: 0\.5'"):
            parse_overrides(text)
    with pytest.raises(ConfigError, match="threshold of 'hat' is 2"):
        Thresholds(overrides=parse_overrides("hat: 2"))


OTHER = Labels(("safe", "hat", "long hair", "dog"), (9, 0, 0, 0))


@pytest.mark.parametrize(
    ("how", "hat", "sword", "hair"),
    [("mean", 0.6, 0.7, 0.05), ("union", 0.8, 0.7, 0.1), ("agreement", 0.4, 0.7, 0.0)],
)
def test_ensembles(how: Any, hat: float, sword: float, hair: float) -> None:
    one = table_of([[0.5, 0, 0.1, 0, 0.7, 0.8, 0, 0], [0] * 8])
    other = table_of([[0.9, 0.4, 0.0, 0.3], [0, 0, 0, 0.5]], OTHER)
    both = combine([one, other], how)
    scores = both.scores_of(0)
    assert scores["hat"] == pytest.approx(hat) and scores["sword"] == pytest.approx(sword)
    assert scores.get("long hair", 0.0) == pytest.approx(hair)
    assert both.scores_of(1) == {"dog": pytest.approx(0.5)}
    assert both.labels.names == (*LABELS.names, "dog")
    entry = both.entry(1, both.labels.index["dog"])
    assert entry is not None and both.values[entry] == np.float32(0.5)
    assert both.entry(1, 0) is None


def test_an_ensemble_of_one_is_that_one_and_different_folders_are_refused() -> None:
    one = table_of([[0.5] * 8])
    assert combine([one]) is one
    with pytest.raises(TaggerError, match="scored different pictures"):
        combine([one, table_of([])])


def test_nothing_at_all() -> None:
    assert len(table_of([])) == 0
    assert chosen_names(table_of([]), Thresholds(mcut_general=True, ratings=True)) == []
    assert chosen_names(table_of([[0.0] * 8]), Thresholds(mcut_general=True, ratings=True)) == [set()]


@pytest.mark.parametrize("how", ["mean", "union", "agreement"])
def test_a_model_with_two_spellings_of_a_tag_has_one_vote(how: Any) -> None:
    twice = table_of([[0.8, 0.7], [0.2, 0.6]], Labels(("Long_Hair", "long_hair"), (0, 0)))
    once = table_of([[0.5, 0.4], [0.5, 0.4]], Labels(("dog", "cat"), (0, 0)))
    both = combine([twice, once], how)
    assert [both.scores_of(row)["Long Hair"] for row in (0, 1)] == pytest.approx([0.8, 0.6])
