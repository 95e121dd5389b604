"""The schedule of the learning rate as it is set in the form, drawn over the steps that are foreseen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from html import escape
from typing import Any

from lib_trainer.config import JobConfig, from_values
from lib_trainer.refusals import Count, Sentence, TrainerError
from lib_trainer.training.foreseen import Foresight
from lib_trainer.training.schedules import factor, schedule_name, warmup_steps
from lib_trainer.ui.kit.notices import told

_log = logging.getLogger(__name__)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 84, 34, 8, 8, 18
UNKNOWN = 1000
"""Steps that are drawn where nobody knows their number: the axis shows shares then."""
DRAWN = 160


class ScheduleLine:
    """Asked at every change of the form."""

    def __init__(self, foresight: Foresight | None = None) -> None:
        self._foresight = foresight or Foresight()

    def html(self, values: Mapping[str, Any]) -> str:
        """Empty where the form is not a job."""
        try:
            job = from_values(values)
            found = None if job.training.max_steps else self._foresight.of(job)
            return drawing(job, job.training.max_steps or (found.steps if found else 0))
        except TrainerError:
            return ""
        except Exception:  # the drawing is a convenience, and what was typed is worth more
            _log.exception("The drawing of the schedule met an unexpected error")
            return ""


def drawing(job: JobConfig, steps: int) -> str:
    """An SVG of the factor on the rates over `steps` steps, or over shares of the run where that is 0."""
    config, total = job.optimizer, steps or UNKNOWN
    places = sorted({round(index * (total - 1) / DRAWN) for index in range(DRAWN + 1)})
    wide, high = (WIDTH - LEFT - RIGHT) / max(1, total - 1), HEIGHT - TOP - BOTTOM
    points = " ".join(
        f"{LEFT + place * wide:.1f},{TOP + high * (1 - factor(config, place, total)):.1f}" for place in places
    )
    end = told(Sentence("drawn.steps", steps=Count(total))) if steps else "100%"
    name, rise = schedule_name(config).replace("_", " "), warmup_steps(config, total)
    if steps:
        label = Sentence("drawn.over_steps", schedule=name, steps=Count(total))
        label = Sentence("drawn.after_steps", schedule=label, steps=Count(rise)) if rise else label
    else:
        label = Sentence("drawn.over_the_run", schedule=name)
        label = Sentence("drawn.after_share", schedule=label, share=f"{rise / total:.0%}") if rise else label
    marks = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{TOP + high * (1 - share)}" y2="{TOP + high * (1 - share)}"/>'
        f'<text x="{LEFT - 4}" y="{TOP + high * (1 - share)}" dy="0.35em" text-anchor="end">{share:.0%}</text>'
        for share in (0, 1)
    )
    return (
        f'<div class="trainer-chart trainer-schedule"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(told(label))}"><g class="trainer-grid">{marks}'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{end}</text></g>'
        f'<polyline class="trainer-smoothed" points="{points}"/></svg></div>'
    )
