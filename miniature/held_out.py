"""A run that overfits and one that does not, told apart by their held-out loss, and where a run is ended early by it.

    python -m miniature.held_out --dir FOLDER

Both learn the same new shape at the same rate, the first from three pictures and the second from eighteen with pictures
of what is known beside them. Twelve other pictures of it are held out of both. A third run is the first once more, with
an early stop: its best step is set beside that of the whole run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib_trainer.config import from_values, to_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev

from .common import print_table
from .demo import COLOURS, SHAPE, TRIGGER, concept_job
from .export import export_webui
from .world import write_concept, write_known

FEW, MANY, HELD = 3, 18, 12
PATIENCE = 4


@dataclass(frozen=True)
class Told:
    """What a run has measured, and at which step it ended."""

    course: tuple[ev.Measured, ...]
    ended: int

    @property
    def best(self) -> ev.Measured:
        return min((one for one in self.course if one.step), key=lambda one: one.held_out)

    @property
    def rise(self) -> float:
        """By what share the held-out loss is higher at the end than at its lowest."""
        return self.course[-1].held_out / self.best.held_out - 1


def learn(host: StandaloneHost, name: str, pictures: Path, held: Path, steps: int, every: int, **changes: Any) -> Told:
    """A run with a rate that does not fall, so that what it does hangs on its length alone."""
    values = to_values(concept_job(pictures, name=name, steps=steps)) | {
        "optimizer.schedule": "constant",
        "training.batch_size": 4,
        "validation.pictures": "folder",
        "validation.folder": str(held),
        "validation.every": every,
    }
    told: list[ev.Measured] = []
    desk = TrainingDesk(host)
    desk.start(
        from_values(values | changes), lambda event: told.append(event) if isinstance(event, ev.Measured) else None
    )
    view = desk.wait()
    if view is None or view.state != "finished":
        raise RuntimeError(f"the run ended: {view}")
    return Told(tuple(told), view.step)


def run(folder: Path, steps: int, every: int, device: torch.device, say: Callable[[str], None] = print) -> list[str]:
    """Train the three and return a Markdown table."""
    host = StandaloneHost(export_webui(folder / "model"), folder, device)
    held = write_concept(folder / "held", shape=SHAPE, trigger=TRIGGER, colours=COLOURS, count=HELD, seed=77)
    few, many = folder / "few", folder / "many"
    write_concept(few, shape=SHAPE, trigger=TRIGGER, colours=COLOURS, count=FEW)
    write_concept(many, shape=SHAPE, trigger=TRIGGER, colours=COLOURS, count=MANY)
    write_known(many)
    found = {}
    for name, pictures, changes in (
        ("overfitted", few, {}),
        ("well-fitted", many, {}),
        ("stopped early", few, {"validation.patience": PATIENCE}),
    ):
        found[name] = told = learn(host, name.replace(" ", "-"), pictures, held, steps, every, **changes)
        say(f"{name}: " + ", ".join(f"{one.step}: {one.held_out:.4f} {one.trained or 0:.4f}" for one in told.course))
    lines = [
        "| run | pictures | ended at | lowest held-out loss | at the end | above the lowest | trained, at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in found.items():
        count, best, last = MANY if name == "well-fitted" else FEW, told.best, told.course[-1]
        lines.append(
            f"| {name} | {count} | {told.ended} | {best.held_out:.4f} at step {best.step} | {last.held_out:.4f} "
            f"| {told.rise:.1%} | {last.trained or 0:.4f} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(print_table(run, __doc__, 240, every=(12, "steps between two measurements")))
