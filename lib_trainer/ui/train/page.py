"""The training page: the form on the left, the run on the right.

gradio 3.41 has no timer. `javascript/bridge.js` polls about every second while the page is visible and a run is active,
and the answer holds only what has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_trainer.config import field_specs
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.kit.bridge import DOWNLOAD, Asked, hurry, script, serve
from lib_trainer.ui.kit.form import Form, build_form, put, serve_put_back, serve_under
from lib_trainer.ui.kit.gradio_compat import QUIET, Maker, in_browser, uploaded
from lib_trainer.ui.train.actions import NAME, OPTIMIZER, TrainActions
from lib_trainer.ui.train.offer import Offer
from lib_trainer.ui.train.page_options import PageOptions
from lib_trainer.ui.train.status import status_html
from lib_trainer.ui.train.steps_grid_panel import TITLE
from lib_trainer.ui.train.watch import PageUpdate

REPLACE = "Replace it (the old file goes to the trash)"
DISCARD = "Discard it (to the trash), start nothing"
SCHEDULE, HEIGHT, RATE = "optimizer.warmup", "dataset.height", "optimizer.text_encoder_lr"
"""After which options stand the drawing, the note on the loaded model's own size, and the search for a rate."""


@dataclass(frozen=True)
class _Page:
    """The components that the events connect."""

    make: Maker
    form: Form
    header: gr.HTML
    caution: gr.HTML
    describe: gr.Button
    steps: gr.HTML
    memory: gr.HTML
    notice: gr.HTML
    status: gr.HTML
    chart: gr.HTML
    gallery: gr.Gallery
    log: gr.HTML
    start: gr.Button
    stop: gr.Button
    save: gr.Button
    preview: gr.Button
    use: gr.Button
    use_prompt: gr.Button
    export: gr.Button
    load: gr.UploadButton
    lora: gr.Textbox
    lora_prompt: gr.Textbox
    offer: gr.Textbox
    offered: gr.Row
    install: gr.Button
    schedule: gr.HTML
    find_rate: gr.Button
    rate: gr.HTML
    use_rate: gr.Button
    steps_grid: Form
    grid: gr.HTML
    draw_grid: gr.Button
    ways: dict[str, gr.Button]
    usual: gr.HTML
    seen: gr.Textbox
    payload: gr.Textbox

    def polled(self) -> list[Any]:
        """The components that a poll writes, in the order of `PageUpdate`."""
        return [getattr(self, name) for name in PageUpdate.__dataclass_fields__]


def build_train_page(runner: TrainingDesk, options: PageOptions) -> None:
    """Lay out the page in the open gradio context and connect it with the runner."""
    actions = TrainActions(runner, options)
    page = _lay_out(options, actions)
    _connect_run(page, actions)
    _connect_files(page, actions)
    _connect_watch(page, actions)


def _lay_out(options: PageOptions, actions: TrainActions) -> _Page:
    make = Maker(options.prefix, "trainer")
    with gr.Column(elem_id=f"{options.prefix}_page", elem_classes="trainer-page"):
        header, caution = make(gr.HTML, "header"), make(gr.HTML, "caution")
        describe = make(gr.Button, "describe", value="Write the .yaml", visible=False, size="sm")
        with gr.Row(elem_classes="trainer-columns", equal_height=False):
            with gr.Column(elem_classes="trainer-left", min_width=340):
                with gr.Row(elem_classes="trainer-files"):
                    load = make(gr.UploadButton, "import", label="Import job file", file_types=[".toml"], size="sm")
                    export = make(gr.Button, "export", value="Export job file", size="sm")
                ways: dict[str, gr.Button] = {}
                between: dict[str, Any] = {}
                offers, beside = {"samplers": options.samplers}, _beside(make, ways, between)
                form = build_form(field_specs(), prefix=options.prefix, offers=offers, beside=beside)
            with gr.Column(elem_classes="trainer-right", min_width=340):
                with gr.Row(elem_classes="trainer-buttons"):
                    start = make(gr.Button, "start", value="Start", variant="primary", min_width=90)
                    stop = make(gr.Button, "stop", value="Stop", variant="stop", interactive=False, min_width=90)
                    save = make(gr.Button, "save", value="Save now", interactive=False, min_width=90)
                    preview = make(gr.Button, "preview_now", value="Preview now", interactive=False, min_width=90)
                steps, memory = make(gr.HTML, "steps"), make(gr.HTML, "memory")
                notice = make(gr.HTML, "notice")
                # The WebUI's own progress bar is put before the anchor; polls never touch this box.
                make(gr.HTML, "native", value='<div class="trainer-native"><div class="trainer-anchor"></div></div>')
                status = make(gr.HTML, "status", value=status_html(None, prefix=options.prefix))
                with gr.Row(elem_classes="trainer-buttons"):
                    use = make(gr.Button, "use", value=options.use_label, variant="primary", visible=False)
                    with_prompt = "… with the preview prompt"
                    use_prompt = make(gr.Button, "use_prompt", value=with_prompt, visible=False)
                chart = make(gr.HTML, "chart")
                gallery = make(
                    gr.Gallery,
                    "gallery",
                    label="Previews",
                    visible=False,
                    show_label=False,
                    columns=3,
                    height="auto",
                    object_fit="contain",
                )
                steps_grid, draw_grid, grid = _lay_out_grid(make, actions)
                with make(gr.Accordion, "log_box", label="Log", open=True):
                    log = make(gr.HTML, "log")
        return _Page(
            form=form, header=header, caution=caution, describe=describe,
            steps=steps, memory=memory, notice=notice, status=status, chart=chart, gallery=gallery,
            log=log,
            start=start, stop=stop, save=save, preview=preview, use=use, use_prompt=use_prompt,
            export=export, load=load, ways=ways, steps_grid=steps_grid, draw_grid=draw_grid, grid=grid, **between,
            make=make,
            lora=make.hidden_text("lora"),
            lora_prompt=make.hidden_text("lora_prompt"),
            offer=make.hidden_text("offer"),
            seen=make.hidden_text("seen"),
            payload=make.hidden_text("payload"),
        )  # fmt: skip


def _lay_out_grid(make: Maker, actions: TrainActions) -> tuple[Form, gr.Button, gr.HTML]:
    """What draws the saved files of the last run beside each other."""
    panel = actions.grid
    with make(gr.Accordion, "grid_box", label=TITLE, open=False):
        form = build_form(panel.specs, prefix=panel.prefix, offers={}, folded=False)
        serve_put_back(Maker(panel.prefix, "trainer"), form, dict)
        button = make(gr.Button, "draw_grid", value="Draw the grid", size="sm")
        return form, button, make(gr.HTML, "grid")


def _beside(make: Maker, ways: dict[str, gr.Button], between: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """What stands between the options of the form, after that of a path; it is put into `ways` and `between`."""

    def offer_names() -> None:
        between["offered"] = _lay_out_offer(make, ways)

    def offer_install() -> None:
        between["install"] = make(gr.Button, "install", value="Install", visible=False, size="sm")

    def draw_schedule() -> None:
        between["schedule"] = make(gr.HTML, "schedule")

    def note_the_size() -> None:
        between["usual"] = make(gr.HTML, "usual")

    def look_for_a_rate() -> None:
        between["find_rate"] = make(gr.Button, "find_rate", value="Find learning rate", size="sm")
        between["rate"] = make(gr.HTML, "rate")
        between["use_rate"] = make(gr.Button, "use_rate", value="", visible=False, size="sm")

    return {
        NAME: offer_names,
        OPTIMIZER: offer_install,
        SCHEDULE: draw_schedule,
        HEIGHT: note_the_size,
        RATE: look_for_a_rate,
    }


def _lay_out_offer(make: Maker, ways: dict[str, gr.Button]) -> gr.Row:
    """Beside the name: what can be done where it is taken. Hidden until then."""
    with make(gr.Row, "taken", visible=False) as row:
        ways["free"] = make(gr.Button, "start_free", value="Start under the next free name", size="sm")
        ways["replace"] = make(gr.Button, "start_replace", value=REPLACE, size="sm")
        ways["continue"] = make(gr.Button, "start_continue", value="Go on from that file", size="sm")
        ways["discard"] = make(gr.Button, "discard", value=DISCARD, size="sm")
    return row


def _connect_run(page: _Page, actions: TrainActions) -> None:
    """Start, Stop, Save now, Preview now. None of them writes over what has been set meanwhile."""
    refresh = hurry(actions.options.prefix)

    def start(*raw: Any) -> list[Any]:
        notice, offer = actions.start(page.form.values(raw))
        return [notice, *_offered(page, offer)]

    answered = [page.notice, page.offer, page.offered, *page.ways.values()]
    in_browser(page.start.click(start, page.form.inputs, answered, **QUIET).then, refresh)
    changed = page.make.hidden_text("way_values")
    for how, button in page.ways.items():
        inputs = [page.offer, *page.form.inputs]
        event = button.click(_starter(page, actions, how), inputs, [*answered, changed], **QUIET)
        put(event, page.make, page.form, changed)
        in_browser(event.then, refresh)
    chosen = page.form.components[OPTIMIZER]

    def install(name: Any) -> list[Any]:
        notice = actions.install({OPTIMIZER: name})
        return [notice, actions.installer({OPTIMIZER: name})]

    page.install.click(install, [chosen], [page.notice, page.install], **QUIET)
    runner = actions.runner
    commands: list[tuple[gr.Button, Callable[[], None], str]] = [
        (page.save, runner.save, "The file will be written after the step in progress."),
        (page.preview, runner.sample, "A preview will be drawn after the step in progress."),
    ]
    for button, action, told in commands:
        event = button.click(_commander(actions, action, told), None, [page.notice], **QUIET)
        in_browser(event.then, refresh)
    in_browser(page.stop.click(actions.stop, None, [page.notice], **QUIET).then, refresh)
    _connect_search(page, actions, refresh)

    def draw_grid(*raw: Any) -> str:
        return actions.grid.start(page.steps_grid.values(raw))

    in_browser(page.draw_grid.click(draw_grid, page.steps_grid.inputs, [page.notice], **QUIET).then, refresh)
    in_browser(page.describe.click(actions.describe, None, [page.notice], **QUIET).then, refresh)
    insert = f"(lines) => {{ lines.split('\\n').forEach({actions.options.insert_js}); return []; }}"
    in_browser(page.use.click, insert, [page.lora])
    in_browser(page.use_prompt.click, insert, [page.lora_prompt])


def _connect_search(page: _Page, actions: TrainActions, refresh: str) -> None:
    """The search for a learning rate, and what puts its answer into the form."""

    def find(*raw: Any) -> str:
        return actions.find_rate(page.form.values(raw))

    def use(*raw: Any) -> str:
        return page.form.over(actions.rates_found(), raw)

    rates = page.make.hidden_text("rate_values")
    in_browser(page.find_rate.click(find, page.form.inputs, [page.notice], **QUIET).then, refresh)
    put(page.use_rate.click(use, page.form.inputs, [rates], **QUIET), page.make, page.form, rates)


def _offered(page: _Page, offer: Offer) -> list[Any]:
    """The offer for later, its row, and its buttons."""
    labels = {
        "free": f"Start as {offer.free}",
        "replace": REPLACE,
        "continue": f"Go on from that file as {offer.free}",
        "discard": DISCARD,
    }
    buttons = [gr.update(value=labels[way], visible=way in offer.ways) for way in page.ways]
    return [offer.text(), gr.update(visible=bool(offer.ways)), *buttons]


def _starter(page: _Page, actions: TrainActions, how: str) -> Callable[..., list[Any]]:
    """What one of the offers does: it starts, and the form shows under which name and from which file, or discards."""

    def start(text: str, *raw: Any) -> list[Any]:
        if how == "discard":
            notice, offer = actions.discard(page.form.values(raw), Offer.parse(text))
            return [notice, *_offered(page, offer), ""]
        notice, offer, changes = actions.start_otherwise(page.form.values(raw), Offer.parse(text), how)
        return [notice, *_offered(page, offer), page.form.over(changes, raw)]

    return start


def _commander(actions: TrainActions, action: Callable[[], None], told: str) -> Callable[[], str]:
    return lambda: actions.command(action, told)


def _connect_files(page: _Page, actions: TrainActions) -> None:
    """Export, import, and the form of the last started job when the page is opened again."""

    def export(*raw: Any) -> tuple[str, str]:
        return actions.files.export(page.form.values(raw))

    def load(file: Any, *raw: Any) -> list[str]:
        notice, values = actions.files.load(uploaded(file))
        return [notice, "" if values is None else page.form.over(values, raw)]

    serve_put_back(page.make, page.form, actions.files.usual)
    exported = page.export.click(export, page.form.inputs, [page.notice, page.payload], **QUIET)
    in_browser(exported.then, DOWNLOAD, [page.payload])
    imported = page.make.hidden_text("import_values")
    loaded = page.load.upload(load, [page.load, *page.form.inputs], [page.notice, imported], **QUIET)
    put(loaded, page.make, page.form, imported)
    serve_under(page.make, page.form, "restore", actions.files.last_job, actions.files.usual)


def _connect_watch(page: _Page, actions: TrainActions) -> None:
    prefix = actions.options.prefix

    def poll(asked: Asked, seen: str) -> list[Any]:
        return actions.watch.poll(seen).outputs()

    def foresee(asked: Asked, *raw: Any) -> list[Any]:
        values = page.form.values(raw)
        lines = [line.html(values) for line in (actions.steps, actions.memory, actions.schedule)]
        return [*lines, actions.installer(values)]

    serve(page.make, "poll", poll, [page.seen], page.polled())
    serve(page.make, "foresee", foresee, page.form.inputs, [page.steps, page.memory, page.schedule, page.install])
    changed = script(f"trainerPage?.changed({prefix!r})")
    for component in page.form.inputs:
        in_browser(component.change, changed)
