"""The line beside Start: what will happen, in pictures, steps and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import from_values
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.foreseen import Foresight
from lib_trainer.training.paces import keep
from lib_trainer.ui.train.steps_line import StepsLine, length
from tests.support import draw_pictures
from tests.ui.fakes import FakeHost


def test_pictures_steps_and_time(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "set", count=3)
    host = FakeHost(tmp_path)
    line = StepsLine(TrainingDesk(host), Foresight())
    values: dict[str, Any] = {"dataset.folder": str(tmp_path / "set"), "dataset.repeats": 2}
    assert "3 pictures × 2 repeats × 10 epochs = 60 steps" in line.html(values)
    assert "known after the first run" in line.html(values)
    keep(host, from_values(values), 90.0)
    assert "About 1 h 30 min at the pace of the last such run (90.0 s a step)." in line.html(values)
    assert "About 3 h 0 min" in line.html(values | {"training.epochs": 20})


def test_what_is_no_job_is_told_nothing_of(tmp_path: Path) -> None:
    line = StepsLine(TrainingDesk(FakeHost(tmp_path)), Foresight())
    for values in ({}, {"dataset.folder": str(tmp_path / "absent")}, {"network.rank": -1}):
        assert line.html(values) == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(20, "a minute"), (60, "1 min"), (3599, "60 min"), (7800, "2 h 10 min"), (400_000, "111 h 7 min")],
)
def test_lengths(seconds: float, told: str) -> None:
    assert str(length(seconds)) == told
