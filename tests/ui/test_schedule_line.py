"""The drawing of the schedule: what it shows is what a run would set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import from_values
from lib_trainer.training.schedules import factor
from lib_trainer.ui.train.schedule_line import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ScheduleLine
from tests.support import draw_pictures


def points(html: str) -> list[tuple[float, float]]:
    """(share of the run, factor) of the line."""
    found = re.search(r'points="([^"]+)"', html)
    assert found is not None
    pairs = [tuple(map(float, pair.split(","))) for pair in found.group(1).split()]
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return [((x - LEFT) / wide, 1 - (y - TOP) / high) for x, y in pairs]


@pytest.mark.parametrize("name", ["cosine", "rex", "warmup_stable_decay"])
def test_the_line_is_the_schedule(name: str) -> None:
    values: dict[str, Any] = {"optimizer.schedule": name, "optimizer.warmup": 20, "training.max_steps": 101}
    html = ScheduleLine().html(values)
    drawn, config = points(html), from_values(values).optimizer
    assert len(drawn) == 101
    for step, (place, value) in enumerate(drawn):
        assert place == pytest.approx(step / 100, abs=0.001)
        assert value == pytest.approx(factor(config, step, 101), abs=0.01)
    assert "101 steps" in html and "after 20 steps of warm-up" in html


def test_the_steps_are_those_that_the_folder_comes_to(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "set", count=3)
    draw_pictures(tmp_path / "set" / "4_thing", count=2)
    draw_pictures(tmp_path / "set" / "rest", count=2)
    line = ScheduleLine()
    values = {"dataset.folder": str(tmp_path / "set"), "dataset.repeats": 2, "training.epochs": 5}
    assert "70 steps" in line.html(values)
    assert "35 steps" in line.html(values | {"training.batch_size": 2})
    assert "20 steps" in line.html(values | {"training.batch_size": 2, "training.gradient_accumulation": 2})
    assert "30 steps" in line.html(values | {"training.max_steps": 30})
    assert "140 steps" in line.html(values | {"prior.class_prompt": "a disc"})
    draw_pictures(tmp_path / "set", count=4)
    assert "80 steps" in line.html(values), "a folder that has changed is counted anew"


def test_without_a_folder_shares_are_shown_and_no_job_has_no_drawing() -> None:
    assert "100%" in ScheduleLine().html({"optimizer.warmup": 0.1})
    assert "after a warm-up of 10%" in ScheduleLine().html({"optimizer.warmup": 0.1})
    assert ScheduleLine().html({"optimizer.warmup": -1.0}) == ""
    assert "100%" in ScheduleLine().html({"dataset.folder": "/no/such/folder"})
