"""What the buttons of the training page do, and what a poll answers: everything but the layout."""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import msgspec

from lib_trainer.config import (
    JobConfig,
    OutputConfig,
    dump_job,
    dump_values,
    field_specs,
    from_values,
    load_values,
    to_values,
)
from lib_trainer.config.fields import label_of
from lib_trainer.files import TRASH
from lib_trainer.kinds.registry import KINDS, kind_of, prompt_for
from lib_trainer.refusals import ConfigError, Field, MemoryShort, Problems, Sentence, TrainerError
from lib_trainer.training.checks import SECOND_RATES, idle_options
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.finder import Report
from lib_trainer.training.foreseen import Foresight
from lib_trainer.training.packages import missing_for, package_of, start_install
from lib_trainer.training.prediction import can_describe, describe_checkpoint, drawn_wrongly
from lib_trainer.training.preview_prompts import wanted
from lib_trainer.training.rate_answer import rate_text
from lib_trainer.training.sizes import usual_note, usual_values, with_usual
from lib_trainer.ui.kit.form import usual_html
from lib_trainer.ui.kit.notices import Notices, told
from lib_trainer.ui.train.chart import chart_html
from lib_trainer.ui.train.held_out_chart import advice_html, held_out_html
from lib_trainer.ui.train.memory_line import MemoryLine
from lib_trainer.ui.train.preview_files import PreviewFiles
from lib_trainer.ui.train.rate_line import rate_html
from lib_trainer.ui.train.schedule_line import ScheduleLine
from lib_trainer.ui.train.seen import Seen
from lib_trainer.ui.train.status import caution_html, header_html, log_html, status_html
from lib_trainer.ui.train.steps_grid_panel import StepsGridPanel, grid_html
from lib_trainer.ui.train.steps_line import StepsLine
from lib_trainer.work.monitor import JobView, RunView

LAST_JOB = "last.toml"
OPTIMIZER, SCHEDULE, HEIGHT = "optimizer.name", "optimizer.warmup", "dataset.height"
"""After which options stand the button that installs, the drawing, and the note on the loaded model's own size."""
PATIENCE = 100.0
"""Seconds that a press of Install waits for its end; browsers wait longer."""
RATE = "optimizer.text_encoder_lr"
"""After which stand the search for a rate and what it has found."""
RATES = tuple(dict.fromkeys((*(path for kind in KINDS.values() for path in kind.all_rates), *SECOND_RATES)))
"""What a search may put into the form."""
NAME, EXISTING, CONTINUE = "output.name", "output.existing", "network.continue_from"
CHANGED = (NAME, "embedding.names", CONTINUE)
"""What a way out of a taken name may change of the form."""
NAMING = tuple(path for path in field_specs() if path.startswith(("output.", "embedding.", "network.", "finetune.")))
"""What a job's files are called by."""


@dataclass(frozen=True)
class PageOptions:
    """What the page must know of the place it is shown in.

    `insert_js` is a JavaScript function of one text that puts it into the host's prompt. `job_folder` keeps the last
    started job, with which the form is filled when the page is opened again. `task_id` names the host's own task while
    a run holds its queue, for the host's own progress bar.
    """

    job_folder: Path
    insert_js: str
    samplers: Sequence[str] = ()
    prefix: str = "trainer"
    use_label: str = "Use in txt2img"
    task_id: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class PageUpdate:
    """One answer to a poll, field by field in the order of the page's outputs; `gr.update()` leaves one as it is."""

    header: Any
    caution: Any
    describe: Any
    status: Any
    chart: Any
    gallery: Any
    log: Any
    rate: Any
    use_rate: Any
    find_rate: Any
    grid: Any
    draw_grid: Any
    start: Any
    stop: Any
    save: Any
    preview: Any
    use: Any
    use_prompt: Any
    lora: Any
    lora_prompt: Any
    usual: Any
    seen: str

    def outputs(self) -> list[Any]:
        return [getattr(self, name) for name in PageUpdate.__dataclass_fields__]


class TrainActions:
    """The page's use of a runner. Holds nothing of the run itself, so any number of pages may watch."""

    def __init__(self, runner: TrainingDesk, options: PageOptions) -> None:
        self.runner = runner
        self.options = options
        self.notices = Notices(options.prefix)
        self._token = secrets.token_hex(4)  # tells what was seen of this server from what was seen before a restart
        self._previews = PreviewFiles()
        self._last_use: tuple[Path, Use] | None = None
        foresight = Foresight()
        self.steps, self.memory = StepsLine(runner, foresight), MemoryLine(runner)
        self.schedule = ScheduleLine(foresight)
        self.grid = StepsGridPanel(runner, options.prefix, self._last_started)
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
                kept = {**to_values(self.runner.job), EXISTING: values.get(EXISTING, field_specs()[EXISTING].default)}
                with contextlib.suppress(OSError):  # the run is what matters: the form's memory is a convenience
                    dump_values(self._own(kept), self.options.job_folder / LAST_JOB)
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
        job = from_values(_read(values), problems)
        if problems.found:
            with problems.at(but={problem.field for problem in problems.found}):
                self.runner.check(job)  # with defaults in the place of what was refused
            problems.raise_if_any()
        return job

    def find_rate(self, values: Mapping[str, Any]) -> str:
        """Look for the learning rate of the form's job; the notice says what is wrong with it."""

        def begin() -> str:
            problems = Problems()
            job = from_values(_read(values), problems)
            problems.raise_if_any()
            self.runner.find_rate(job)
            return ""

        return self.notices.of(begin)

    def rates_found(self) -> dict[str, float]:
        """{option: rate} of the middle of the range that was found last; empty where none was."""
        view = self.runner.search()
        report = view.result if view is not None else None
        return report.at(report.range.middle) if isinstance(report, Report) and report.range is not None else {}

    def _use_rate(self, view: JobView | None) -> Any:
        """The button that puts the middle of the range into the form."""
        found = self.rates_found()
        told_rates = " and ".join(f"{label_of(Field(path))} {rate_text(rate)}" for path, rate in found.items())
        return gr.update(visible=bool(found), value=f"Set {told_rates}" if found else "")

    def stop(self) -> str:
        """End the run, the search or the grid under way; the notice says what becomes of it."""
        if self.runner.drawing:
            self.runner.stop()
            return self.notices.say("Stopping after the picture in progress.", while_active=True)
        if self.runner.searching:
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

    def export(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """A notice, and what the script offers for download (empty if the form cannot be exported)."""
        payload = ""

        def write() -> str:
            nonlocal payload
            job = from_values(_read(values))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "job.toml")
                dump_job(job, path)
                payload = json.dumps({"name": f"{job.output.name or 'job'}.toml", "text": path.read_text("utf-8")})
            return ""

        return self.notices.of(write), payload

    def load(self, path: Path) -> tuple[str, dict[str, Any] | None]:
        """A notice, and the values of a job file (None if it is not one)."""
        values: dict[str, Any] | None = None

        def read() -> str:
            nonlocal values
            values = to_values(from_values(with_usual(load_values(path, called=path.name), self.runner.host)))
            return self.notices.say(f"The form now shows {path.name}.")

        return self.notices.of(read), values

    def last_job(self) -> dict[str, Any] | None:
        """The values of the job that was started last, if its file is there and readable."""
        try:
            own = load_values(self.options.job_folder / LAST_JOB)
            return to_values(from_values(with_usual(own, self.runner.host)))
        except ConfigError:
            return None

    def _last_started(self) -> JobConfig | None:
        values = self.last_job()
        return None if values is None else from_values(values)

    def usual(self) -> dict[str, Any]:
        """What the form shows of the options whose default hangs on the model, where nobody has changed them."""
        return usual_values(self.runner.host)

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values without the model's own: with another model they are others."""
        usual = self.usual()
        followed = usual if all(values[path] == value for path, value in usual.items()) else {}
        return {path: value for path, value in values.items() if path not in followed}

    def _idle(self) -> list[str]:
        host = self.runner.host
        return idle_options(host.family(), inpaints=host.inpaints())

    def poll(self, seen: str) -> PageUpdate:
        """What has changed since a watcher saw `seen`; the clock moves while a run is active."""
        view, found, drawn = self.runner.view(), self.runner.search(), self.runner.grid()
        header, (caution, remedy) = self.runner.host.describe(), self._caution()
        task, idle = self.options.task_id(), self._idle()
        note = told(usual_note(self.runner.host))
        usual = usual_html(field_specs(), self.usual(), idle, note, self.options.prefix)
        now = self._now(view, (found, drawn), (header, caution, usual), task or "")
        before = Seen.parse(seen)
        same_run = before is not None and (before.token, before.run) == (now.token, now.run)
        fresh = before if same_run else None
        skip = gr.update()
        beside = now.searching or now.drawing
        under_way = now.active or beside
        turned = fresh is None or (fresh.active, fresh.searching, fresh.drawing) != (
            now.active, now.searching, now.drawing,
        )  # fmt: skip
        ready = gr.update(interactive=not under_way) if turned else skip
        busy = gr.update(interactive=now.active) if turned else skip
        told_of = fresh is None or (fresh.search, fresh.searched) != (now.search, now.searched)
        grid_told = fresh is None or (fresh.grid, fresh.gridded) != (now.grid, now.gridded)
        moved = fresh is None or (fresh.revision, fresh.task) != (now.revision, now.task)
        use = self._use(view) if moved else Use()
        return PageUpdate(
            header=skip if fresh and fresh.header == header else header_html(header),
            caution=skip if fresh and fresh.caution == caution else caution_html(caution),
            describe=skip if fresh and fresh.caution == caution else gr.update(visible=remedy),
            status=status_html(view, prefix=self.options.prefix, task_id=task, beside=beside)
            if moved or turned or now.active
            else skip,
            chart=skip if fresh and fresh.step == now.step else _chart(view),
            gallery=skip if fresh and fresh.previews == now.previews else self._gallery(view),
            log=log_html(view) if moved else skip,
            rate=rate_html(found) if told_of or now.searching else skip,
            use_rate=self._use_rate(found) if told_of else skip,
            find_rate=ready,
            grid=grid_html(drawn) if grid_told or now.drawing else skip,
            draw_grid=ready,
            start=ready,
            stop=gr.update(interactive=under_way) if turned else skip,
            save=busy,
            preview=busy,
            use=gr.update(visible=bool(use.parts)) if moved else skip,
            use_prompt=gr.update(visible=bool(use.with_prompt)) if moved else skip,
            lora=use.parts if moved else skip,
            lora_prompt=use.with_prompt if moved else skip,
            usual=skip if fresh and fresh.usual == usual else usual,
            seen=now.text(),
        )

    def _now(
        self,
        view: RunView | None,
        others: tuple[JobView | None, JobView | None],
        texts: tuple[str, str, str],
        task: str,
    ) -> Seen:
        """What a watcher sees of a run, a search and a grid, beside the `texts` header, caution and usual."""
        found, drawn = others
        header, caution, usual = texts
        return Seen(
            self._token,
            header,
            caution,
            usual,
            task,
            view.id if view else "",
            view.revision if view else 0,
            view.step if view else 0,
            view.previews[-1].number + view.grids + (not view.active) if view and view.previews else 0,
            bool(view and view.active),
            found.id if found else "",
            found.revision if found else 0,
            bool(found and found.active),
            drawn.id if drawn else "",
            drawn.revision if drawn else 0,
            bool(drawn and drawn.active),
        )

    def _caution(self) -> tuple[str, bool]:
        """What is wrong with how the host draws the loaded model, and whether a .yaml would mend it."""
        try:
            found = self.runner.host.predicts()
        except TrainerError:
            return "", False
        wrong = drawn_wrongly(found)
        return ("", False) if wrong is None else (told(wrong), can_describe(found))

    def describe(self) -> str:
        """Write the .yaml that the host builds the loaded checkpoint from; the notice says where."""
        host = self.runner.host

        def write() -> str:
            path = describe_checkpoint(host.predicts(), host.family())
            return self.notices.say(f"Wrote {path}. Load the checkpoint again.")

        return self.notices.of(write)

    def _gallery(self, view: RunView | None) -> Any:
        items = self._previews.items(view)
        return gr.update(value=items, visible=bool(items))

    def _use(self, view: RunView | None) -> Use:
        """What a prompt needs for the saved file; nothing where the host's prompts would not find it.

        Told anew only when another file was saved: it looks at the host's folders.
        """
        path = None if view is None else view.output
        if path is None:
            return Use()
        if self._last_use is None or self._last_use[0] != path:
            self._last_use = path, use_of(prompt_for(self.runner.host, path), self.runner.job)
        return self._last_use[1]


@dataclass(frozen=True)
class Offer:
    """A name that is taken: by which file, the next free name, and whether the file can be replaced."""

    taken: Path | None = None
    free: str = ""
    replaceable: bool = False

    @property
    def ways(self) -> list[str]:
        """Which of "free", "replace", "continue" and "discard" there are."""
        known = dict.fromkeys(("free", "continue"), bool(self.free)) | dict.fromkeys(
            ("replace", "discard"), self.replaceable
        )
        return [way for way, there in known.items() if there and self.taken is not None]

    def text(self) -> str:
        return json.dumps([str(self.taken or ""), self.free, self.replaceable])

    @classmethod
    def parse(cls, text: str) -> Offer:
        taken, free, replaceable = json.loads(text or '["", "", false]')
        return cls(Path(taken) if taken else None, str(free), bool(replaceable))


@dataclass(frozen=True)
class Use:
    """Lines that go into a prompt, each where it is not in it yet; `with_prompt` has the first preview's prompt too."""

    parts: str = ""
    with_prompt: str = ""


def use_of(call: str, job: JobConfig | None) -> Use:
    """The trigger words of a job and the call of its file."""
    if not call:
        return Use()
    parts = [*(kind_of(job).trigger_words(job) if job is not None else []), call]
    prompt = next((one.prompt for one in wanted(job)), "") if job is not None else ""
    return Use("\n".join(parts), "\n".join([prompt, *parts]) if prompt else "")


def _chart(view: RunView | None) -> str:
    if view is None:
        return chart_html(())
    return chart_html(view.curve) + held_out_html(view.held_out, view.step) + advice_html(view)


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The form's values, but for what is wrong in fields that are not shown: nobody could mend it, nor reads it."""
    specs = field_specs()

    def left_out(path: str, value: Any) -> bool:
        spec = specs.get(path)
        return bool(spec and spec.when and not spec.shown_in(values) and not spec.takes(value))

    return {path: specs[path].default if left_out(path, value) else value for path, value in values.items()}
