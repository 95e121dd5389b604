"""`find-rate`: a job's learning rate, from short runs that leave nothing behind."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib_trainer.cli.watching import watched
from lib_trainer.refusals import printable

if TYPE_CHECKING:
    from lib_trainer.config import JobConfig
    from lib_trainer.training.desk import TrainingDesk
    from lib_trainer.training.finder import Report

Ask = Callable[[argparse.Namespace], "tuple[JobConfig, TrainingDesk]"]


def add_parser(commands: Any, add_options: Callable[[argparse.ArgumentParser], None], ask: Ask) -> None:
    """`add_options` adds what names a job, and `ask` reads it."""
    parser = commands.add_parser(
        "find-rate",
        help="look for a job's learning rate",
        description="Look for the learning rate of a job by short runs from the same start, judged by pictures that "
        "they do not see. It tells a range and how sure that is, or why it does not know; nothing is written. Exit "
        "codes: 0 answered or stopped, 1 failed, 2 a bad job.",
    )
    add_options(parser)
    parser.set_defaults(run=lambda options: find_rate(*ask(options)))


def find_rate(job: JobConfig, desk: TrainingDesk) -> int:
    """Search with a progress bar in the terminal. Returns the exit code; raises `TrainerError` for a bad job."""
    from lib_trainer.training.finder import Report

    view = watched(lambda bar: desk.find_rate(job, bar), desk.searches, answered=True)
    if view.state == "failed":
        return 1
    if isinstance(view.result, Report):
        print("\n".join(lines(view.result)))
    print("Stopped: there is no answer." if view.state == "stopped" else printable(str(view.told)))
    for note in view.notes:
        print(printable(str(note)))
    return 0


def lines(report: Report) -> list[str]:
    """The rates that were tried as a table, and what to set."""
    from lib_trainer.training.rate_answer import rate_text, two_digits

    option, rate = next(iter(report.rates.items()))
    found = [f"{option:>28}  steps  error fell by"]
    for one in report.tried:
        fell = "overflowed" if one.gain is None else f"{one.gain:+7.1%} ± {one.error:.1%}"
        found.append(f"{rate_text(two_digits(rate * one.factor)):>28}  {one.steps:5}  {fell}")
    if report.range is not None:
        found += [f"{path} = {value:g}" for path, value in report.at(report.range.middle).items()]
    return found
