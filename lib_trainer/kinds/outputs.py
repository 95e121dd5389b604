"""The files of a run: what was learned, what a kind leaves beside it, and those of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outputs:
    """The files of a finished run: `results` hold what was learned, and the first is what the run is known by.

    `beside` is what else a kind may leave, by what it is.
    """

    results: tuple[Path, ...]
    beside: Mapping[str, Path] = field(default_factory=dict)

    @property
    def result(self) -> Path:
        return self.results[0]

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.results, *self.beside.values())

    def of_step(self, step: int) -> Outputs:
        """The files of an intermediate step, beside the final ones."""
        return Outputs(tuple(step_path(path, step) for path in self.results))

    @property
    def best(self) -> Outputs:
        """The files of the step with the lowest held-out loss, beside the final ones."""
        return Outputs(tuple(best_path(path) for path in self.results))


def step_path(path: Path, step: int) -> Path:
    """The file of an intermediate step, beside the final one."""
    return path.with_name(f"{path.stem}-step{step:08d}{path.suffix}")


def best_path(path: Path) -> Path:
    """The file of the step with the lowest held-out loss, beside the final one."""
    return path.with_name(f"{path.stem}-best{path.suffix}")


SAVED_ENDS = r"-step\d{8}|-best"
"""A regular expression of what `step_path` and `best_path` put behind a name."""
