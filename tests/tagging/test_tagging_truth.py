"""Precision and recall on drawn pictures whose truth is known, along the slider, over cached scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tagging_truth import measure
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.scores.store import ScoreStore


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, mini: Tagger) -> dict[float, tuple[float, float]]:
    folder = tmp_path_factory.mktemp("truth")
    return {row.line: (row.precision, row.recall) for row in measure(mini, Path(folder), 150)}


def test_the_default_threshold_finds_what_is_there(rows: dict[float, tuple[float, float]]) -> None:
    precision, recall = rows[0.35]
    assert precision > 0.97 and recall > 0.97


def test_the_slider_trades_one_for_the_other(rows: dict[float, tuple[float, float]]) -> None:
    lines = sorted(rows)
    recalls = [rows[line][1] for line in lines]
    assert recalls == sorted(recalls, reverse=True), "a higher line never finds more"
    assert rows[lines[-1]][0] > rows[lines[0]][0] + 0.02, "and is right more often"
    assert rows[lines[0]][1] > rows[lines[-1]][1] + 0.02


def test_scores_were_kept(rows: dict[float, tuple[float, float]], tmp_path: Path) -> None:
    assert len(rows) >= 9
    assert ScoreStore(tmp_path).models() == {}
