"""Saved steps × weights on the training page: what is asked for, how far it is, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from lib_trainer.config import JobConfig
from lib_trainer.options.describe import describe
from lib_trainer.options.values import made
from lib_trainer.refusals import ConfigError
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.steps_grid_settings import StepsGridSettings
from lib_trainer.ui.kit.notices import Notices, naming, told
from lib_trainer.ui.kit.pictures import shown_small
from lib_trainer.ui.train.status import progress_html
from lib_trainer.work.monitor import JobView

TITLE = "Saved steps × weights"


class StepsGridPanel:
    """`last`: the job that was started last, where none was in this process."""

    def __init__(self, runner: TrainingDesk, prefix: str, last: Callable[[], JobConfig | None]) -> None:
        self._runner, self._last, self.specs = runner, last, describe(StepsGridSettings)
        self.prefix = f"{prefix}_grid"
        self._notices = Notices(prefix, naming(self.specs), dict.fromkeys(self.specs, self.prefix))

    def start(self, values: Mapping[str, Any]) -> str:
        """Draw what the last run has saved; the notice says what is wrong."""

        def begin() -> str:
            job = self._runner.job or self._last()
            if job is None:
                raise ConfigError("steps_grid.no_run")
            whole = {path: _whole(self.specs[path].kind, value) for path, value in values.items()}
            self._runner.draw_steps(job, made(StepsGridSettings, whole))
            return ""

        return self._notices.of(begin)


def _whole(kind: str, value: Any) -> Any:
    """A page's numbers are floats."""
    return int(value) if kind == "int" and isinstance(value, float) and value.is_integer() else value


def grid_html(view: JobView | None) -> str:
    """Empty before the first grid."""
    if view is None:
        return ""
    notes = "".join(f'<div class="trainer-rate-note">{escape(told(note))}</div>' for note in view.notes)
    line = progress_html(view, "Stopped.")
    return f'<div class="trainer-rate" data-state="{view.state}">{line}{notes}{_picture(view)}</div>'


def _picture(view: JobView) -> str:
    path = view.output
    if view.active or path is None or not path.is_file():
        return ""
    return f'<img class="trainer-steps-grid" src="{shown_small(path)}" alt="{escape(TITLE)}: {escape(path.name)}">'
