"""`steps-grid`: what a job's runs have saved, at several weights, in one picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib_trainer.cli.find_rate import Ask
from lib_trainer.cli.watching import watched
from lib_trainer.options.arguments import add_arguments, given_values
from lib_trainer.options.describe import describe
from lib_trainer.options.values import made
from lib_trainer.refusals import printable
from lib_trainer.training.steps_grid_settings import StepsGridSettings

if TYPE_CHECKING:
    from lib_trainer.config import JobConfig
    from lib_trainer.training.desk import TrainingDesk


def add_parser(commands: Any, add_options: Callable[[argparse.ArgumentParser], None], ask: Ask) -> None:
    """`add_options` adds what names a job, and `ask` reads it."""
    parser = commands.add_parser(
        "steps-grid",
        help="draw saved steps beside each other",
        description="Draw what runs of a job have saved, a row for each step and a column for each weight, with the "
        "job's preview prompts and the checkpoint's own sampler; where runs are numbered, those of the last one. "
        "Ctrl-C keeps what is drawn by then. Exit codes: 0 drawn or stopped, 1 failed, 2 refused.",
    )
    add_options(parser)
    specs = describe(StepsGridSettings)
    add_arguments(parser, specs.values())

    def run(options: argparse.Namespace) -> int:
        settings = made(StepsGridSettings, given_values(options, specs))
        return steps_grid(*ask(options), settings)

    parser.set_defaults(run=run)


def steps_grid(job: JobConfig, desk: TrainingDesk, settings: StepsGridSettings) -> int:
    """Draw with a progress bar in the terminal. Returns the exit code; raises `TrainerError` for what is refused."""
    from lib_trainer.training.results import newest_run

    job = newest_run(job, desk.host)  # a job file has the name that was asked for, not the one that a run was given
    view = watched(lambda bar: desk.draw_steps(job, settings, bar), desk.grids)
    if view.state == "failed":
        return 1
    print(printable(str(view.output)) if view.output is not None else "Stopped: nothing was drawn.")
    return 0
