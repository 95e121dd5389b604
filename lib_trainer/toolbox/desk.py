"""Use cases of the model toolbox: look what a tool would do, start it, watch it, stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lib_trainer.options.declare import Section
from lib_trainer.options.describe import FieldSpec, describe
from lib_trainer.options.values import made
from lib_trainer.refusals import ConfigError, Sentence, TrainerError
from lib_trainer.toolbox.progress import Progress, StopAsked
from lib_trainer.work.control import Control
from lib_trainer.work.events import Finished, Listener
from lib_trainer.work.job import Job
from lib_trainer.work.monitor import JobView
from lib_trainer.work.runner import Runner, kept

ON_THE_MODEL = ("training", "search", "grid")
"""Kinds of jobs that hold the loaded model."""
TRIAL = "trial"
"""What a job of this desk is given that uses the loaded model, in place of a tool's settings."""


@dataclass(frozen=True)
class Done:
    """What a tool has done: the file it wrote (None if none), a sentence on it, and what else deserves a word."""

    told: Sentence
    path: Path | None = None
    notes: tuple[Sentence, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Work that was checked and may start. `lines`: what it will do, which is all that a dry run shows.

    `quiet`: they are not told while it runs, as its end repeats them.
    """

    lines: tuple[Sentence, ...]
    work: Callable[[Progress], Done]
    quiet: bool = False


@dataclass(frozen=True)
class Tool:
    """One tool: what the command line and the page know of it.

    name      of the command
    title     what it does, in a few words, without a capital
    settings  its options: a `Section`
    prepare   checks them and the files they name, reads no more than headers, and raises `TrainerError`
    places    options that the command line takes by their place and not as flags
    required  how many of those have to be there
    makes     what kind of file it writes: "checkpoints" or "loras"; "" where that is what it reads, or nothing
    """

    name: str
    title: str
    settings: type[Section]
    prepare: Callable[[Any], Prepared]
    places: tuple[str, ...] = ()
    makes: str = ""
    required: int = 1

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return describe(self.settings)

    def made(self, values: Mapping[str, Any]) -> Any:
        """Its settings from {option: value}, the others at their defaults. Raises `ConfigError` naming the option."""
        return made(self.settings, values)


class ToolDesk:
    """Runs tools, one at a time."""

    def __init__(self, runner: Runner | None = None) -> None:
        self._runner = runner or Runner()
        self._queue = self._runner.queue("toolbox", _busy)

    def look(self, tool: Tool, settings: Section) -> tuple[Sentence, ...]:
        """What would be done. Raises as `start` does, and does nothing."""
        return tool.prepare(settings).lines

    def start(self, tool: Tool, settings: Section, *listeners: Listener) -> None:
        """Check and start in the background. Raises `TrainerError` for what cannot be done; nothing is written then."""

        self.work(tool.name, lambda: tool.prepare(settings), settings, *listeners)

    def work(self, name: str, prepare: Callable[[], Prepared], given: object, *listeners: Listener) -> None:
        """As `start`, of what is no tool of the table."""

        def prepared() -> Job:
            return Job("toolbox", Sentence("toolbox.job", name=name), partial(_run, prepare()), given)

        self._queue.start(prepared, *listeners)

    def on_the_model(self, name: str, prepare: Callable[[], Prepared]) -> None:
        """As `work`, of what uses the loaded model. Raises `ConfigError` also while
        a training, a search for a rate or a grid of saved steps has it."""

        def prepared() -> Prepared:
            if any(one.alive and one.job.kind in ON_THE_MODEL for one in self._runner.jobs()):
                raise ConfigError("toolbox.training")
            return prepare()

        self.work(name, prepared, TRIAL)

    @property
    def running(self) -> bool:
        return self._queue.running

    @property
    def on_model(self) -> bool:
        """Whether a job is under way that uses the loaded model."""
        last = self._queue.last
        return last is not None and last.alive and last.job.given == TRIAL

    def view(self) -> JobView | None:
        return self._queue.view()

    def stop(self) -> None:
        """End the job; what it was writing is removed."""
        self._queue.stop()

    def wait(self, timeout: float | None = None) -> JobView | None:
        return self._queue.wait(timeout)


def _busy() -> TrainerError:
    return ConfigError("toolbox.busy")


def _run(prepared: Prepared, control: Control, emit: Listener) -> None:
    progress = Progress(control, emit)
    for line in () if prepared.quiet else prepared.lines:
        progress.say(line)
    try:
        done = prepared.work(progress)
    except StopAsked:
        emit(Finished(stopped=True, told=Sentence("toolbox.stopped")))
        return
    emit(Finished(path=done.path, told=done.told, notes=(*progress.notes, *done.notes)))


def process_desk() -> ToolDesk:
    """The one desk of this process: "Reload UI" must find a job again."""
    return kept("toolbox", lambda: ToolDesk(kept("runner", Runner)))
