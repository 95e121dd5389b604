"""What the course of the held-out loss says of a run: what to look for, and which option to change first.

Only what is beyond chance is said: two measurements are compared picture by picture, with the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lib_trainer.config import JobConfig
from lib_trainer.kinds.base import Kind
from lib_trainer.refusals import Field, Sentence
from lib_trainer.training.course import Course, Point

LEAST_POINTS = 3
"""Measurements after the start, below which a course has no shape."""

CERTAIN = 2.0
"""Standard errors beyond which a difference is more than chance."""


def advice(course: Course, job: JobConfig, kind: Kind) -> Sentence | None:
    """At the end of a run; None where too little was measured to have a shape."""
    start, best = course.start, course.best
    later = [one for one in course.points if one.step > course.begins]
    if start is None or best is None or len(later) < LEAST_POINTS:
        return None
    last, rates = later[-1], [Field(path) for path in kind.rates]
    fell, rose = differs(best, start), differs(last, best)
    if fell > -CERTAIN:
        if differs(last, start) > CERTAIN:
            return Sentence("advice.never_fell", rates=rates)
        return Sentence("advice.unclear", pictures=Field("validation.pictures"), levels=Field("validation.levels"))
    if rose > CERTAIN and last.step > best.step:
        length = Field("training.max_steps" if job.training.max_steps else "training.epochs")
        if last.trained is None or best.trained is None:
            measured = Field("validation.trained")
            return Sentence("advice.rose", step=best.step, length=length, rates=rates, measured=measured)
        if last.trained >= best.trained:
            return Sentence("advice.unsteady", step=best.step, rates=rates)
        return Sentence("advice.by_heart", step=best.step, length=length, rates=rates)
    before = later[-3:-1]
    if best is last and all(differs(last, one) < -CERTAIN for one in before):
        return Sentence("advice.still_falling")
    return Sentence("advice.level", step=best.step)


def differs(now: Point, before: Point) -> float:
    """By how many standard errors of the mean of pictures a loss is higher; 0 where a single picture is measured."""
    changes = [one - other for one, other in zip(now.by_picture, before.by_picture, strict=True)]
    if len(changes) < 2:
        return 0.0
    mean = sum(changes) / len(changes)
    error = _deviation(changes, mean) / math.sqrt(len(changes))
    return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0


def _deviation(numbers: Sequence[float], mean: float) -> float:
    return math.sqrt(sum((one - mean) ** 2 for one in numbers) / (len(numbers) - 1))
