"""Use cases of training: check a job, run it, watch it, steer it. What a page, the command line and an API hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Joined, MemoryShort, Sentence, TrainerError
from lib_trainer.training.finder import prepare_search, search
from lib_trainer.training.paces import Watch, keep
from lib_trainer.training.plan import Plan, prepare
from lib_trainer.training.results import discard_taken
from lib_trainer.training.run import run_plan
from lib_trainer.training.steps_grid import draw_steps_grid, prepare_steps_grid
from lib_trainer.training.steps_grid_settings import StepsGridSettings
from lib_trainer.work.control import Control
from lib_trainer.work.events import Listener
from lib_trainer.work.job import Job
from lib_trainer.work.monitor import RunMonitor, RunView
from lib_trainer.work.runner import Queue, Runner, kept


class TrainingDesk:
    """Trains on one host, one job at a time.

    `searches` for a rate, each of whose `result` is a `Report`; `grids` of saved steps, whose `output` is a picture.
    """

    def __init__(self, host: Host, runner: Runner | None = None) -> None:
        self.host = host
        self.runner = runner or Runner()
        self._queue = self.runner.queue("training", _busy)
        self.searches = self.runner.queue("search", _busy_searching)
        self.grids = self.runner.queue("steps grid", _busy_drawing)

    def start(self, job: JobConfig, listener: Listener | None = None, *, confirmed: bool = True) -> None:
        """Check the job and start it in the background.

        Raises a `TrainerError` with the user's sentence if the job cannot run or one is running; no model has been
        touched then. What goes wrong later is told by `view()` and to `listener`. A job that seems not to fit the
        memory is started with a warning; unless `confirmed`, that is `MemoryShort` and nothing is started.
        """

        def prepared() -> Job:
            self._free_of(self.searches, self.grids)
            plan = prepare(job, self.host)
            if plan.warnings and not confirmed:
                raise MemoryShort("memory.short", warnings=Joined(plan.warnings))
            return Job("training", plan.job.output.name, partial(_run, plan, self.host), plan.job, RunMonitor)

        self._queue.start(prepared, *([] if listener is None else [listener]))

    def find_rate(self, job: JobConfig, listener: Listener | None = None) -> None:
        """Look for the learning rate of a job in the background; `searches` tell of it, and nothing is written.

        Raises a `TrainerError` with the user's sentence if that cannot be, or something is under way.
        """

        def prepared() -> Job:
            self._free_of(self._queue, self.grids)
            plan = prepare_search(job, self.host)
            return Job("search", Sentence("finder.title"), partial(search, plan, self.host), plan.job)

        self.searches.start(prepared, *([] if listener is None else [listener]))

    def draw_steps(self, job: JobConfig, settings: StepsGridSettings, listener: Listener | None = None) -> None:
        """Draw what runs of a job have saved at several weights, in the background; `grids` tell of it.

        Raises a `TrainerError` with the user's sentence if that cannot be, or something is under way.
        """

        def prepared() -> Job:
            self._free_of(self._queue, self.searches)
            grid = prepare_steps_grid(job, settings, self.host)
            return Job("grid", grid.title, partial(draw_steps_grid, grid, self.host), settings)

        self.grids.start(prepared, *([] if listener is None else [listener]))

    @staticmethod
    def _free_of(*queues: Queue) -> None:
        """Raise what one of the queues says while it is busy."""
        for queue in queues:
            queue.check_idle()

    def check(self, job: JobConfig) -> None:
        """Raise what `start` would raise for the job itself, and start nothing."""
        prepare(job, self.host)

    def discard(self, job: JobConfig) -> list[Path]:
        """Move what earlier runs left under this job's names to the trash, steps and cards too; returns what was moved.

        Raises a `TrainerError`, with everything where it was, while a run is under way or saved steps are drawn, and
        where a file is no result of such a job, is the loaded checkpoint, or cannot be moved.
        """
        with self._queue.idle(_busy_with_files), self.grids.idle(_busy_drawing):
            return discard_taken(job, self.host)

    @property
    def job(self) -> JobConfig | None:
        """Of the run under way or the last one."""
        last = self._queue.last
        given = None if last is None else last.job.given
        return given if isinstance(given, JobConfig) else None

    @property
    def running(self) -> bool:
        return self._queue.running

    def view(self) -> RunView | None:
        """The run under way or the last one; None before the first."""
        view = self._queue.view()
        return view if isinstance(view, RunView) else None

    def stop(self) -> None:
        """End the run after the step in progress and keep what it has. A queued run ends before its first step.

        A search for a rate ends too, and a grid, of which what is drawn by then is kept.
        """
        self._queue.stop()
        self.searches.stop()
        self.grids.stop()

    def save(self) -> None:
        """Write the file as it stands, without stopping."""
        self._tell(Control.save)

    def sample(self) -> None:
        """Draw a preview between two steps."""
        self._tell(Control.sample)

    def _tell(self, command: Callable[[Control], None]) -> None:
        last = self._queue.last
        if last is not None:
            command(last.control)

    def wait(self, timeout: float | None = None) -> RunView | None:
        """Block until the run has ended (or `timeout` seconds have passed)."""
        self._queue.wait(timeout)
        return self.view()


def _busy() -> TrainerError:
    return ConfigError("training.busy")


def _busy_searching() -> TrainerError:
    return ConfigError("finder.busy")


def _busy_drawing() -> TrainerError:
    return ConfigError("steps_grid.busy")


def _busy_with_files() -> TrainerError:
    return ConfigError("training.busy_with_files")


def _run(plan: Plan, host: Host, control: Control, emit: Listener) -> None:
    """Also remembers how long its steps took."""
    watch = Watch()
    try:
        run_plan(plan, host, control, watch.listening(emit))
    finally:
        if watch.seconds is not None:
            keep(host, plan.job, watch.seconds)


def process_desk(make_host: Callable[[], Host]) -> TrainingDesk:
    """The one desk of this process: "Reload UI" must find a run again."""
    return kept("training", lambda: TrainingDesk(make_host(), kept("runner", Runner)))
