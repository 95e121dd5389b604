"""The line beside Start that says what will happen: pictures, steps, and about how long they take."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from html import escape
from typing import Any

from lib_trainer.config import JobConfig, from_values
from lib_trainer.refusals import Count, Decimals, Sentence, TrainerError
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.foreseen import Foresight
from lib_trainer.training.paces import expected
from lib_trainer.ui.kit.notices import told

_log = logging.getLogger(__name__)
MINUTE, HOUR = 60, 3600


class StepsLine:
    """Asked at every change of the form; says nothing while a run is under way."""

    def __init__(self, runner: TrainingDesk, foresight: Foresight) -> None:
        self._runner, self._foresight = runner, foresight

    def html(self, values: Mapping[str, Any]) -> str:
        """Empty where nothing can be said: no folder yet, or a value that is refused."""
        if self._runner.running:
            return ""
        try:
            job = from_values(values)
            found = self._foresight.of(job)
            if found is None:
                return ""
            first, second = told(found.told()), told(self._time(job, found.steps))
        except TrainerError:
            return ""
        except Exception:  # the line is a convenience, and what was typed is worth more
            _log.exception("The line on a run's length met an unexpected error")
            return ""
        return f'<div class="trainer-steps" role="status"><b>{escape(first)}</b><br>{escape(second)}</div>'

    def _time(self, job: JobConfig, steps: int) -> Sentence:
        pace = expected(self._runner.host, job)
        if pace is None:
            return Sentence("foreseen.no_time")
        told_pace = Sentence("foreseen.seconds", seconds=Decimals(pace, 2 if pace < 1 else 1))
        return Sentence("foreseen.time", time=length(steps * pace), pace=told_pace)


def length(seconds: float) -> Sentence:
    """As people say it: 40 min, 2 h 10 min."""
    if seconds < MINUTE:
        return Sentence("foreseen.less_than_a_minute")
    minutes = round(seconds / MINUTE)
    if seconds < HOUR:
        return Sentence("foreseen.minutes", minutes=minutes)
    return Sentence("foreseen.hours", hours=Count(minutes // 60), minutes=minutes % 60)
