"""What a poll of the training page answers: what has changed since its watcher last saw it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lib_trainer.config import field_specs
from lib_trainer.config.fields import label_of
from lib_trainer.kinds.registry import prompt_for
from lib_trainer.refusals import Field, TrainerError
from lib_trainer.training.checks import idle_options
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.prediction import can_describe, drawn_wrongly
from lib_trainer.training.rate_answer import rate_text
from lib_trainer.training.sizes import usual_note, usual_values
from lib_trainer.ui.kit.form import usual_html
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.train.chart import chart_html
from lib_trainer.ui.train.held_out_chart import advice_html, held_out_html
from lib_trainer.ui.train.page_options import PageOptions
from lib_trainer.ui.train.preview_files import PreviewFiles
from lib_trainer.ui.train.prompt_lines import PromptLines, prompt_lines
from lib_trainer.ui.train.rate_line import rate_html, rates_found
from lib_trainer.ui.train.seen import Seen
from lib_trainer.ui.train.status import caution_html, header_html, log_html, status_html
from lib_trainer.ui.train.steps_grid_panel import grid_html
from lib_trainer.work.monitor import JobView, RunView


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


class Watch:
    """What pages are told of runs. Holds nothing of a run itself, so any number of pages may watch."""

    def __init__(self, runner: TrainingDesk, options: PageOptions) -> None:
        self._runner, self._options = runner, options
        self._token = secrets.token_hex(4)  # tells what was seen of this server from what was seen before a restart
        self._previews = PreviewFiles()
        self._last_lines: tuple[Path, PromptLines] | None = None

    def poll(self, seen: str) -> PageUpdate:
        """What has changed since a watcher saw `seen`; the clock moves while a run is active."""
        view, found, drawn = self._runner.view(), self._runner.searches.view(), self._runner.grids.view()
        header, (caution, remedy) = self._runner.host.describe(), self._caution()
        task, usual = self._options.task_id(), self._usual()
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
        lines = self._lines(view) if moved else PromptLines()
        return PageUpdate(
            header=skip if fresh and fresh.header == header else header_html(header),
            caution=skip if fresh and fresh.caution == caution else caution_html(caution),
            describe=skip if fresh and fresh.caution == caution else gr.update(visible=remedy),
            status=status_html(view, prefix=self._options.prefix, task_id=task, beside=beside)
            if moved or turned or now.active
            else skip,
            chart=skip if fresh and fresh.curves == now.curves else _chart(view),
            gallery=skip if fresh and fresh.previews == now.previews else self._gallery(view),
            log=log_html(view) if moved else skip,
            rate=rate_html(found) if told_of or now.searching else skip,
            use_rate=_use_rate(found) if told_of else skip,
            find_rate=ready,
            grid=grid_html(drawn) if grid_told or now.drawing else skip,
            draw_grid=ready,
            start=ready,
            stop=gr.update(interactive=under_way) if turned else skip,
            save=busy,
            preview=busy,
            use=gr.update(visible=bool(lines.parts)) if moved else skip,
            use_prompt=gr.update(visible=bool(lines.with_prompt)) if moved else skip,
            lora=lines.parts if moved else skip,
            lora_prompt=lines.with_prompt if moved else skip,
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
            _curves(view),
            view.previews[-1].number + view.grids + (not view.active) if view and view.previews else 0,
            bool(view and view.active),
            found.id if found else "",
            found.revision if found else 0,
            bool(found and found.active),
            drawn.id if drawn else "",
            drawn.revision if drawn else 0,
            bool(drawn and drawn.active),
        )

    def _usual(self) -> str:
        """What stands at the options whose default hangs on the model, and which of all have no effect on it."""
        host = self._runner.host
        idle = idle_options(host.family(), inpaints=host.inpaints())
        return usual_html(field_specs(), usual_values(host), idle, told(usual_note(host)), self._options.prefix)

    def _caution(self) -> tuple[str, bool]:
        """What is wrong with how the host draws the loaded model, and whether a .yaml would mend it."""
        try:
            found = self._runner.host.predicts()
        except TrainerError:
            return "", False
        wrong = drawn_wrongly(found)
        return ("", False) if wrong is None else (told(wrong), can_describe(found))

    def _gallery(self, view: RunView | None) -> Any:
        items = self._previews.items(view)
        return gr.update(value=items, visible=bool(items))

    def _lines(self, view: RunView | None) -> PromptLines:
        """What a prompt needs for the saved file; nothing where the host's prompts would not find it.

        Told anew only when another file was saved: it looks at the host's folders.
        """
        path = None if view is None else view.output
        if path is None:
            return PromptLines()
        if self._last_lines is None or self._last_lines[0] != path:
            self._last_lines = path, prompt_lines(prompt_for(self._runner.host, path), self._runner.job)
        return self._last_lines[1]


def _use_rate(view: JobView | None) -> Any:
    """The button that puts the middle of the range into the form."""
    found = rates_found(view)
    told_rates = " and ".join(f"{label_of(Field(path))} {rate_text(rate)}" for path, rate in found.items())
    return gr.update(visible=bool(found), value=f"Set {told_rates}" if found else "")


def _curves(view: RunView | None) -> str:
    """What changes whenever the charts do: a step is measured after it is done, and the end says what they show."""
    return f"{view.step} {view.held_out[-1:]} {view.active}" if view else ""


def _chart(view: RunView | None) -> str:
    if view is None:
        return chart_html(())
    return chart_html(view.curve) + held_out_html(view.held_out, view.step, view.best_step) + advice_html(view)
