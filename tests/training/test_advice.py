"""What is said of a run by its held-out loss, and that nothing is said beyond what the numbers show."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_trainer.kinds.registry import kind_of
from lib_trainer.training.advice import advice, differs
from lib_trainer.training.course import Course, Point
from tests.support import make_job

FALLING = (0.20, 0.18, 0.16, 0.14)
SPREAD = (-0.01, 0.0, 0.01, 0.03)
"""Pictures differ by more than a loss changes: only their differences tell it."""


def course(held: tuple[float, ...], trained: tuple[float, ...] | None = None, wobble: float = 0.0002) -> Course:
    points = []
    for place, value in enumerate(held):
        own = tuple(
            value + spread + wobble * (-1) ** (place + number) * (1 + number) for number, spread in enumerate(SPREAD)
        )
        points.append(Point(place * 10, sum(own) / len(own), None if trained is None else trained[place], own))
    return Course(0, points)


@pytest.mark.parametrize(
    ("held", "trained", "code"),
    [
        ((0.20, 0.18, 0.16, 0.17, 0.19), (0.20, 0.17, 0.14, 0.11, 0.08), "advice.by_heart"),
        ((0.20, 0.18, 0.16, 0.17, 0.19), None, "advice.rose"),
        ((0.20, 0.18, 0.16, 0.17, 0.19), (0.20, 0.17, 0.14, 0.16, 0.20), "advice.unsteady"),
        ((0.20, 0.21, 0.22, 0.24, 0.30), (0.20, 0.21, 0.22, 0.24, 0.30), "advice.never_fell"),
        (FALLING, FALLING, "advice.still_falling"),
        ((0.20, 0.18, 0.16, 0.16, 0.16), (0.20, 0.17, 0.14, 0.12, 0.11), "advice.level"),
        ((0.20, 0.20, 0.20, 0.20), (0.20, 0.17, 0.14, 0.10), "advice.unclear"),
    ],
)
def test_what_the_curves_say(held: tuple[float, ...], trained: tuple[float, ...] | None, code: str) -> None:
    job = make_job(Path("/set"))
    said = advice(course(held, trained), job, kind_of(job))
    assert said is not None and said.code == code
    if code in ("advice.by_heart", "advice.rose", "advice.unsteady", "advice.level"):
        assert said.facts["step"] == (20 if code != "advice.level" else course(held).best.step)  # type: ignore[union-attr]
    assert str(said).endswith(".")


def test_what_is_within_chance_is_not_said() -> None:
    """The same rise, of pictures that do not agree on it."""
    job = make_job(Path("/set"))
    said = advice(course((0.20, 0.16, 0.10, 0.105), wobble=0.01), job, kind_of(job))
    assert said is not None and said.code == "advice.level"
    assert differs(Point(1, 0.2, None, (0.2,)), Point(0, 0.1, None, (0.1,))) == 0, "one picture has no spread"
    assert advice(course(FALLING[:3]), job, kind_of(job)) is None


def test_the_length_is_named_as_the_job_gives_it() -> None:
    held = (0.20, 0.18, 0.16, 0.17, 0.19)
    for steps, path in ((100, "training.max_steps"), (0, "training.epochs")):
        job = make_job(Path("/set"), training__max_steps=steps)
        assert path in str(advice(course(held), job, kind_of(job)))
