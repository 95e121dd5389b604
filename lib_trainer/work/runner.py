"""Who runs jobs: each in a thread of its own, so that a closed page, a dropped connection or a reloaded UI ends none.

A `Queue` holds jobs that must not run at the same time; a `Runner` knows the queues. Both give plain views of what is
under way and what has ended last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lib_trainer.refusals import Sentence, TrainerError, UnexpectedError, one_line
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from lib_trainer.work.job import Job, new_id
from lib_trainer.work.monitor import JobView

logger = logging.getLogger(__name__)
Kept = TypeVar("Kept")


class Running:
    """A job that was started, until long after it has ended."""

    def __init__(self, job: Job, listeners: tuple[ev.Listener, ...]) -> None:
        self.job, self.id, self.control = job, new_id(), Control()
        self.monitor = job.monitor(job.name, job.kind, self.id)
        self._listeners = listeners
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"trainer-{self.job.kind}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._over.is_set()

    def view(self) -> JobView:
        return self.monitor.view()

    def stop(self) -> None:
        """End the job after what is in progress; what is done is kept."""
        self.control.stop()
        self.monitor.stopping()

    def wait(self, timeout: float | None = None) -> JobView:
        """Block until the job has ended (or `timeout` seconds have passed)."""
        self._over.wait(timeout)
        return self.view()

    def _emit(self, event: ev.Event) -> None:
        listeners: tuple[ev.Listener, ...] = (self.monitor, *self._listeners)
        for listener in listeners:
            listener(event)

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self.job = dataclasses.replace(self.job, work=_over)  # lets go of all that it held
            self._listeners = ()
            self._over.set()

    def _work(self) -> None:
        """The job's work, which ends with an event whatever happens in it."""
        try:
            self.job.work(self.control, self._emit)
            if not self.monitor.ended:
                raise RuntimeError("the work ended and said nothing")
        except TrainerError as error:
            failed = ev.Failed(error.sentence, error.kept)
            level = logging.ERROR if isinstance(error, UnexpectedError) else logging.WARNING
            told = "\n".join(filter(None, (str(error), error.trace)))
            logger.log(
                level, "The %s '%s' failed: %s", self.job.kind, self.job.name, told,
                exc_info=None if error.trace else error.__cause__,  # no name for it: its frames would hold this one
            )  # fmt: skip
        except BaseException as error:  # the last line of defence: a bug must reach the page, not only the console
            unexpected = Sentence("run.unexpected", kind=type(error).__name__, reason=one_line(error))
            failed = ev.Failed(unexpected)
            logger.exception("The %s '%s' failed", self.job.kind, self.job.name)
        else:
            return
        if self.monitor.ended:  # a listener could not bear the end
            return
        try:
            self._emit(failed)
        except Exception:  # a listener that raises is what may have ended the work
            logger.exception("A listener could not be told of the failure")


def _over(control: Control, emit: ev.Listener) -> None:
    """The work of a job that has ended."""


class Queue:
    """Jobs that must not run at the same time: what is started while one runs is refused with `busy`."""

    def __init__(self, busy: Callable[[], TrainerError]) -> None:
        self._busy = busy
        self._lock = threading.Lock()
        self._last: Running | None = None

    @property
    def last(self) -> Running | None:
        """The job under way, or the last one; None before the first."""
        return self._last

    @property
    def running(self) -> bool:
        return self._last is not None and self._last.alive

    def start(self, prepare: Callable[[], Job], *listeners: ev.Listener) -> Running:
        """Start the job that `prepare` makes. While it is prepared no other is.

        Raises `busy`, and what `prepare` raises; nothing has been started then, and the last job is still the last.
        """
        with self._lock:
            if self.running:
                raise self._busy()
            before, started = self._last, Running(prepare(), listeners)
            self._last = started
            try:
                started.start()
            except BaseException:  # no thread could be made
                self._last = before
                raise
            return started

    @contextlib.contextmanager
    def idle(self, busy: Callable[[], TrainerError]) -> Iterator[None]:
        """Hold the queue while nothing runs in it and nothing is started. Raises `busy`."""
        with self._lock:
            if self.running:
                raise busy()
            yield

    def check_idle(self) -> None:
        """Raise what a start would raise while a job runs."""
        if self.running:
            raise self._busy()

    def view(self) -> JobView | None:
        last = self._last
        return None if last is None else last.view()

    def stop(self) -> None:
        """Stop the job under way, if one is."""
        last = self._last
        if last is not None and last.alive:
            last.stop()

    def wait(self, timeout: float | None = None) -> JobView | None:
        last = self._last
        return None if last is None else last.wait(timeout)


class Runner:
    """The queues of one process by name, and the jobs in them by id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, Queue] = {}

    def queue(self, name: str, busy: Callable[[], TrainerError]) -> Queue:
        """The queue of that name, made when it is first asked for."""
        with self._lock:
            return self._queues.setdefault(name, Queue(busy))

    def jobs(self) -> list[Running]:
        """The job under way, or the last one, of every queue, the oldest first."""
        with self._lock:
            found = [queue.last for queue in self._queues.values()]
        return sorted((one for one in found if one is not None), key=lambda one: one.id)

    def find(self, id: str) -> Running | None:
        return next((one for one in self.jobs() if one.id == id), None)


_kept: dict[str, Any] = {}
_making = threading.RLock()


def kept(name: str, make: Callable[[], Kept]) -> Kept:
    """The one object of this name in the process, made at its first use.

    The WebUI's "Reload UI" executes an extension's scripts anew but keeps its packages: a job must be found again.
    """
    with _making:
        if name not in _kept:
            _kept[name] = make()
        found: Kept = _kept[name]
    return found
