"""A job that is watched from a terminal until it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, TypeVar

from lib_trainer.cli.interrupts import stopping_at_interrupt
from lib_trainer.refusals import printable

if TYPE_CHECKING:
    from lib_trainer.work.events import Listener
    from lib_trainer.work.monitor import JobView

View = TypeVar("View", bound="JobView", covariant=True)


class Jobs(Protocol[View]):
    """A desk, or one of its queues."""

    @property
    def running(self) -> bool: ...

    def view(self) -> View | None: ...

    def wait(self, timeout: float | None = None) -> object: ...

    def stop(self) -> None: ...


def watched(
    start: Callable[[Listener], None],
    jobs: Jobs[View],
    stop: Callable[[], None] | None = None,
    *,
    answered: bool = False,
) -> View:
    """Start a job, show a progress bar until it has ended, and say what went wrong. Raises what `start` raises.

    Ctrl-C calls `stop`, or stops the job. `answered`: the caller prints what the job has told.
    """
    from lib_trainer.cli.progress_bar import ProgressBar

    with closing(ProgressBar(answered=answered)) as bar, stopping_at_interrupt(stop or jobs.stop, lambda: jobs.running):
        start(bar)
        while jobs.running:
            jobs.wait(0.2)
    view = jobs.view()
    assert view is not None  # it was started
    if view.state == "failed":
        print(f"error: {printable(view.error)}", file=sys.stderr)
    return view
