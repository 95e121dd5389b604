"""What the buttons of the training page do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
import msgspec

from lib_trainer.config import JobConfig, OutputConfig, field_specs, from_values, to_values
from lib_trainer.files import TRASH
from lib_trainer.refusals import MemoryShort, Problems, Sentence, TrainerError
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.foreseen import Foresight
from lib_trainer.training.packages import missing_for, package_of, start_install
from lib_trainer.training.prediction import describe_checkpoint
from lib_trainer.ui.kit.notices import Notices, told
from lib_trainer.ui.train.job_files import JobFiles, job_of
from lib_trainer.ui.train.memory_line import MemoryLine
from lib_trainer.ui.train.offer import Offer
from lib_trainer.ui.train.page_options import PageOptions
from lib_trainer.ui.train.rate_line import rates_found
from lib_trainer.ui.train.schedule_line import ScheduleLine
from lib_trainer.ui.train.steps_grid_panel import StepsGridPanel
from lib_trainer.ui.train.steps_line import StepsLine
from lib_trainer.ui.train.watch import Watch

OPTIMIZER = "optimizer.name"
PATIENCE = 100.0
"""Seconds that a press of Install waits for its end; browsers wait longer."""
NAME, EXISTING, CONTINUE = "output.name", "output.existing", "network.continue_from"
CHANGED = (NAME, "embedding.names", CONTINUE)
"""What a way out of a taken name may change of the form."""
NAMING = tuple(path for path in field_specs() if path.startswith(("output.", "embedding.", "network.", "finetune.")))
"""What a job's files are called by."""


class TrainActions:
    """The page's use of a runner, with what it shows: `files` of jobs, a `watch` on the run, lines under the form."""

    def __init__(self, runner: TrainingDesk, options: PageOptions) -> None:
        self.runner, self.options, self.notices = runner, options, Notices(options.prefix)
        self.files, self.watch = JobFiles(options.job_folder, runner.host, self.notices), Watch(runner, options)
        foresight = Foresight()
        self.steps, self.memory = StepsLine(runner, foresight), MemoryLine(runner)
        self.schedule = ScheduleLine(foresight)
        self.grid = StepsGridPanel(runner, options.prefix, self.files.last_started)
        self._told_short: JobConfig | None = None

    def start(self, values: Mapping[str, Any], existing: str = "") -> tuple[str, Offer]:
        """Start a run. If it cannot, the notice names all that is wrong, and for a taken name there is an offer.

        `existing` takes the place of the form's own choice for a taken name, this once. A job that seems not to fit
        the memory is told what to change and starts when Start is pressed again.
        """
        offer = Offer()

        def begin() -> str:
            nonlocal offer
            try:
                job = self._checked({**values, **({EXISTING: existing} if existing else {})})
                asked = msgspec.structs.replace(job, output=OutputConfig())  # its name plays no part
                confirmed, self._told_short = asked == self._told_short, None
                try:
                    self.runner.start(job, confirmed=confirmed)
                except MemoryShort as short:
                    self._told_short = asked
                    return self.notices.say(
                        f"{told(short.sentence)} Press Start again to start it as it is.", error=True
                    )
            except TrainerError as error:
                taken = (one for one in error.problems if one.taken is not None)
                offer = next((Offer(one.taken, one.free, one.replaceable) for one in taken), offer)
                raise
            if self.runner.job is not None:
                own = values.get(EXISTING, field_specs()[EXISTING].default)
                self.files.keep({**to_values(self.runner.job), EXISTING: own})
            return ""

        return self.notices.of(begin), offer

    def start_otherwise(self, values: Mapping[str, Any], offer: Offer, how: str) -> tuple[str, Offer, dict[str, Any]]:
        """Start a job whose name is taken: under the next "free" name, with "replace", or "continue" from the file.

        Also gives what the form is to show: the names that the run has got, and the file that it goes on from.
        """
        asked = {**values, CONTINUE: str(offer.taken)} if how == "continue" else values
        notice, left = self.start(asked, "replace" if how == "replace" else "number")
        if notice or self.runner.job is None:
            return notice, left, {}
        shown = to_values(self.runner.job)
        return notice, left, {path: shown[path] for path in CHANGED if values.get(path) or path == CONTINUE}

    def discard(self, values: Mapping[str, Any], offer: Offer) -> tuple[str, Offer]:
        """Move what lies under a taken name to the trash and start nothing; the offer stays where that fails."""
        left = offer

        def move() -> str:
            nonlocal left
            job = from_values({path: value for path, value in values.items() if path in NAMING})
            moved, left = self.runner.discard(job), Offer()
            if not moved:
                return self.notices.say("Nothing lies under this name any more.")
            more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
            return self.notices.say(
                f"{moved[0].name}{more} went to the trash, {moved[0].parent / TRASH}. The name is free."
            )

        return self.notices.of(move), left

    def _checked(self, values: Mapping[str, Any]) -> JobConfig:
        """The job of the form. Raises everything that is wrong with it, also what the host has to say."""
        problems = Problems()
        job = job_of(values, problems)
        if problems.found:
            with problems.at(but={problem.field for problem in problems.found}):
                self.runner.check(job)  # with defaults in the place of what was refused
            problems.raise_if_any()
        return job

    def find_rate(self, values: Mapping[str, Any]) -> str:
        """Look for the learning rate of the form's job; the notice says what is wrong with it."""

        def begin() -> str:
            self.runner.find_rate(job_of(values))
            return ""

        return self.notices.of(begin)

    def rates_found(self) -> dict[str, float]:
        """{option: rate} of the middle of the range that was found last; empty where none was."""
        return rates_found(self.runner.searches.view())

    def stop(self) -> str:
        """End the run, the search or the grid under way; the notice says what becomes of it."""
        if self.runner.grids.running:
            self.runner.stop()
            return self.notices.say("Stopping after the picture in progress.", while_active=True)
        if self.runner.searches.running:
            self.runner.stop()
            return self.notices.say("Stopping after the step in progress.", while_active=True)
        return self.command(self.runner.stop, "Stopping after the step in progress; what has been learned is saved.")

    def command(self, action: Callable[[], None], told: str) -> str:
        """Tell the running job something; the notice confirms it."""
        if not self.runner.running:
            return self.notices.say("No run is under way.")
        action()
        return self.notices.say(told, while_active=True)

    def install(self, values: Mapping[str, Any]) -> str:
        """Install what the chosen optimizer needs; the notice says how it went, or that it goes on."""

        def begin() -> str:
            name = str(values[OPTIMIZER])
            package = package_of(name)
            view = start_install(self.runner.runner, name).wait(PATIENCE)
            if view.active:
                return self.notices.say(told(Sentence("install.goes_on", package=package.name)))
            if view.failure:
                return self.notices.say(told(view.failure), error=True)
            return self.notices.say(told(Sentence("install.done", package=package.name)))

        return self.notices.of(begin)

    def installer(self, values: Mapping[str, Any]) -> Any:
        """The button of `install`: it is there where a package is missing."""
        package = missing_for(str(values[OPTIMIZER]))
        return gr.update(visible=package is not None, value=f"Install {package.name}" if package else "")

    def describe(self) -> str:
        """Write the .yaml that the host builds the loaded checkpoint from; the notice says where."""
        host = self.runner.host

        def write() -> str:
            path = describe_checkpoint(host.predicts(), host.family())
            return self.notices.say(f"Wrote {path}. Load the checkpoint again.")

        return self.notices.of(write)
