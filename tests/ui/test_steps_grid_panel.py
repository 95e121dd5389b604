"""Saved steps × weights on the training page: what a press says, and what the panel shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from lib_trainer.config import JobConfig, from_values
from lib_trainer.refusals import Sentence
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.train.steps_grid_panel import StepsGridPanel, grid_html
from lib_trainer.work.events import Phase
from lib_trainer.work.monitor import JobView
from tests.ui.fakes import FakeHost

VALUES = {"weights": "0.5, 1", "prompt": "a cat --d 3", "most": 2.0}


def panel(root: Path, last: JobConfig | None) -> tuple[StepsGridPanel, TrainingDesk]:
    desk = TrainingDesk(FakeHost(root))
    return StepsGridPanel(desk, "trainer", lambda: last), desk


def test_the_last_jobs_files_are_drawn_and_mistakes_are_told_at_their_field(tmp_path: Path) -> None:
    nothing, _ = panel(tmp_path, None)
    assert "There was no run yet" in nothing.start(VALUES)
    own, desk = panel(tmp_path, from_values({"output.name": "cat"}))
    assert "There are no saved files of cat" in own.start(VALUES)
    desk.host.lora_folder().mkdir()
    for name in ("cat-step00000001", "cat-step00000002", "cat"):
        (desk.host.lora_folder() / f"{name}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    wrong = own.start(VALUES | {"prompt": "a --x 1"})
    assert 'data-field="trainer_grid_prompt"' in wrong and "Prompts, line" in wrong
    assert 'data-field="trainer_grid_most"' in own.start(VALUES | {"most": 0.0})
    assert own.start(VALUES) == ""
    view = desk.grids.wait(30)
    assert view is not None and view.state == "finished" and view.output is not None
    shown = grid_html(view)
    assert "data:image/jpeg;base64," in shown and "2 of 3 saved files are drawn" in shown
    with Image.open(view.output) as grid:
        assert grid.height > 2 * 512 and grid.width > 2 * 512


def test_the_panel_tells_how_far_it_is_and_how_it_ended() -> None:
    view = JobView("x", "running", progress=Phase(Sentence("phase.drawing"), 3, 12, "pictures", left=61))
    assert grid_html(None) == ""
    assert "Drawing 3/12 · 1:01 left" in grid_html(view) and 'aria-valuenow="25"' in grid_html(view)
    assert "Stopped." in grid_html(replace(view, state="stopped"))
    assert 'role="alert"' in grid_html(replace(view, state="failed", failure="no <room>")) and "&lt;room" in grid_html(
        replace(view, state="failed", failure="no <room>")
    )
