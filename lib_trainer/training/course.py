"""The course of the held-out loss, and its best step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """Mean losses after a step; `trained` is None where trained pictures are not measured. `by_picture` are
    the losses of the held-out pictures."""

    step: int
    held_out: float
    trained: float | None = None
    by_picture: tuple[float, ...] = ()


@dataclass
class Course:
    """How the held-out loss went so far: a part of the training state.

    `begins`: the step after which the pictures are learned that are measured. What is measured there is the start, and
    never the best.
    """

    begins: int = 0
    points: list[Point] = field(default_factory=list)

    def put(self, point: Point) -> bool:
        """Take in a measurement; whether it is the best one."""
        self.points.append(point)
        return self.best is point

    @property
    def start(self) -> Point | None:
        return next((one for one in self.points if one.step <= self.begins), None)

    @property
    def best(self) -> Point | None:
        """The first of those with the lowest loss."""
        later = [one for one in self.points if one.step > self.begins]
        return min(later, key=lambda one: one.held_out, default=None)

    @property
    def since_best(self) -> int:
        """Measurements in a row that have brought no lower loss."""
        best = self.best
        return 0 if best is None else sum(one.step > best.step for one in self.points)

    def state_dict(self) -> dict[str, Any]:
        return {"points": [[one.step, one.held_out, one.trained, list(one.by_picture)] for one in self.points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.points = [Point(step, held, trained, tuple(own)) for step, held, trained, own in state["points"]]
