"""Use cases over a host: check a job, run it, watch it, steer it.

`JobRunner` is what a page, the command line and an API hold. It runs one job at a time in a thread of its own, so that
a closed page, a dropped connection or a reloaded UI does not end a run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, MemoryShort, TrainerError
from lib_trainer.training.failures import UnexpectedError
from lib_trainer.training.results import discard_taken
from lib_trainer.training.run import Plan, prepare, run_plan
from lib_trainer.work import events as ev
from lib_trainer.work.monitor import Monitor, RunView

logger = logging.getLogger(__name__)


class JobRunner:
    """Runs jobs on one host, one at a time."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._monitor: Monitor | None = None
        self._control = ev.Control()
        self.job: JobConfig | None = None
        """Of the run under way or the last one."""

    def start(self, job: JobConfig, listener: ev.Listener | None = None, *, confirmed: bool = True) -> None:
        """Check the job and start it in the background.

        Raises a `TrainerError` with the user's sentence if the job cannot run or one is running; no model has been
        touched then. What goes wrong later is told by `view()` and to `listener`. A job that seems not to fit the
        memory is started with a warning; unless `confirmed`, that is `MemoryShort` and nothing is started.
        """
        with self._lock:
            if self.running:
                raise ConfigError("A training run is already under way: wait for it or stop it first.")
            plan = prepare(job, self.host)
            if plan.warnings and not confirmed:
                raise MemoryShort(" ".join(plan.warnings))
            self.job, self._monitor = plan.job, Monitor(plan.job.output.name)
            self._control = ev.Control()
            listeners: list[ev.Listener] = [self._monitor] if listener is None else [self._monitor, listener]
            self._thread = threading.Thread(
                target=_run, args=(plan, self.host, self._control, fan_out(listeners)), name="trainer", daemon=True
            )
            self._thread.start()

    def check(self, job: JobConfig) -> None:
        """Raise what `start` would raise for the job itself, and start nothing."""
        prepare(job, self.host)

    def discard(self, job: JobConfig) -> list[Path]:
        """Move what earlier runs left under this job's names to the trash, steps and cards too; returns what was moved.

        Raises a `TrainerError`, with everything where it was, while a run is under way and where a file is no result
        of such a job, is the loaded checkpoint, or cannot be moved.
        """
        with self._lock:
            if self.running:
                raise ConfigError("A training run is under way: wait for it or stop it before its files are discarded.")
            return discard_taken(job, self.host)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def view(self) -> RunView | None:
        """The run under way or the last one; None before the first."""
        return None if self._monitor is None else self._monitor.view()

    def stop(self) -> None:
        """End the run after the step in progress and keep what it has. A queued run ends before its first step."""
        self._control.stop()

    def save(self) -> None:
        """Write the file as it stands, without stopping."""
        self._control.save()

    def sample(self) -> None:
        """Draw a preview between two steps."""
        self._control.sample()

    def wait(self, timeout: float | None = None) -> RunView | None:
        """Block until the run has ended (or `timeout` seconds have passed)."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.view()


_process_runner: list[JobRunner] = []


def process_runner(make_host: Callable[[], Host]) -> JobRunner:
    """The one runner of this process, made at its first use.

    The WebUI's "Reload UI" executes an extension's scripts anew but keeps its packages: a run must be found again.
    """
    if not _process_runner:
        _process_runner.append(JobRunner(make_host()))
    return _process_runner[0]


def _run(plan: Plan, host: Host, control: ev.Control, emit: ev.Listener) -> None:
    try:
        run_plan(plan, host, control, emit)
    except TrainerError as error:
        failure = ev.Failed(str(error), error.kept)
        level = logging.ERROR if isinstance(error, UnexpectedError) else logging.WARNING
        logger.log(level, "The training run failed: %s", "\n".join(filter(None, (str(error), error.trace))))
    except Exception as error:  # the thread's last line of defence: a bug must reach the page, not only the console
        failure = ev.Failed(f"{type(error).__name__}: {error}")
        logger.exception("The training run failed")
    else:
        return
    try:
        emit(failure)
    except Exception:  # a listener that raises is what may have ended the run
        logger.exception("A listener could not be told of the failure")


def fan_out(listeners: list[ev.Listener]) -> ev.Listener:
    """One listener that tells several, in order."""

    def emit(event: ev.Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
