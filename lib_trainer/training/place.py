"""Where a run takes place, who is told of it, and how far it is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lib_trainer.memory import release
from lib_trainer.ports import Host, Lease, LoadedModel
from lib_trainer.refusals import Sentence
from lib_trainer.training.failures import Point
from lib_trainer.training.pace import Pace
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a run takes place, and who is told of it."""

    host: Host
    model: LoadedModel
    lease: Lease
    control: Control
    emit: ev.Listener

    def stopping(self) -> bool:
        """A host may take its Interrupt back (the WebUI does so with its next task): once seen, it holds."""
        if (reason := self.lease.interrupted) and not self.control.stopping:
            self.control.stop()
            self.say(reason)
        return self.control.stopping

    def say(self, text: str | Sentence) -> None:
        self.emit(ev.Message(text))

    def warn(self, text: str | Sentence) -> None:
        self.emit(ev.Message(text, "warning"))

    def take_up(self, path: Path) -> None:
        """A list that cannot be read anew is a warning: the file is there."""
        try:
            self.host.added(path)
        except Exception as error:
            logger.warning("The host could not take up %s\n%s", path, release(error, self.model.device))
            self.warn(Sentence("run.list_not_read", name=path.name, reason=error))

    def phase(self, name: Sentence) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            self.emit(ev.Phase(name, done, total))
            self.lease.progress(0, 0, f"{name} {done}/{total}")

        return progress


@dataclass
class Progress:
    """What changes during a run, beside its training state.

    `saved` is the step of the newest file, with its path. `replaced` files are still to go to the trash. `best` is the
    step of the file with the lowest held-out loss, and `best_begun`: what has its name is this run's; `enough`: by that
    loss the run ends early. `trace` is that of the error that ended the steps, as text: a log that kept the traceback
    would keep all tensors.
    """

    replaced: list[Path]
    point: Point = "setup"
    saved: tuple[int, Path] | None = None
    best: int | None = None
    best_begun: bool = False
    enough: bool = False
    cover: Image.Image | None = None
    trace: str = ""
    pace: Pace = field(default_factory=Pace)
    leaving: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What is let go of when the steps are over."""
