"""The tab Models: a form for each tool on the left; what it says and the job under way on the right.

Forms, checks and sentences are the tools' own; `javascript/models.js` polls while a job runs, moves the sliders of
blocks, and ticks duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from lib_trainer.ports import Host
from lib_trainer.toolbox.desk import ToolDesk
from lib_trainer.toolbox.tools import TOOLS
from lib_trainer.ui.kit.bridge import Asked, hurry, serve
from lib_trainer.ui.kit.form import Form, build_form, serve_put_back
from lib_trainer.ui.kit.gradio_compat import QUIET, Maker, in_browser, keep_out_of_ui_config
from lib_trainer.ui.kit.notices import field_id
from lib_trainer.ui.models.actions import CURVES, PREFIX, Curve, ModelsActions
from lib_trainer.ui.models.view import job_html, tried_html

TITLES = {
    "merge": "Merge", "inspect": "Look inside", "duplicates": "Duplicates", "clean": "Clean", "extract": "Extract",
    "inject": "Inject", "combine": "Combine", "resize": "Resize", "convert": "Convert", "repair": "Repair",
}  # fmt: skip
ABOUT = {
    "duplicates": "Files that hold the same are listed with the bytes that they take. Tick what may go into the folder "
    ".trainer-trash beside it, and start again.",
    "inspect": "What a file is, what is in it and whether it is sound; a part has one hash in every container.",
}
START = {"inspect": "Look inside", "duplicates": "Compare"}
TRIED = {"merge": "Try before saving", "repair": "Find the blocks that matter"}
"""Tools with something that is tried on the loaded model."""
LAST = ("output", "existing", "precision")
"""Options that a form ends with."""
LOOKING = ("inspect",)
"""Tools that write nothing, and so need no look before."""


def build_models_page(desk: ToolDesk, host: Host, *, prefix: str = PREFIX) -> ModelsActions:
    """Lay out the tab in the open gradio context and connect it with the desk."""
    actions, make = ModelsActions(desk, host, prefix=prefix), Maker(prefix, "models")
    offers = actions.offers()
    forms: dict[str, Form] = {}
    panels: dict[tuple[str, str], Any] = {}
    buttons: dict[str, tuple[Any, Any]] = {}
    grids: dict[str, tuple[Form, Any]] = {}
    tries: dict[str, Any] = {}
    lists: list[tuple[str, Any]] = []
    with (
        gr.Column(elem_id=f"{prefix}_page", elem_classes="trainer-page models-page"),
        gr.Row(elem_classes="trainer-columns", equal_height=False),
    ):
        with (
            gr.Column(elem_classes="trainer-left", min_width=340, scale=3),
            gr.Tabs(elem_id=f"{prefix}_tools"),
        ):
            for name, title in TITLES.items():
                with gr.Tab(title, elem_id=f"{prefix}_tool_{name}"):
                    if name in ABOUT:
                        make(gr.HTML, f"{name}_about", value=f'<p class="models-about">{ABOUT[name]}</p>')
                    forms[name] = _form(name, actions, make, offers, panels, lists)
                    buttons[name] = _buttons(name, make)
                    if name in TRIED:
                        grids[name] = _lay_out_grid(name, actions, make, tries)
        with gr.Column(elem_classes="trainer-right", min_width=320, scale=2):
            notice = make(gr.HTML, "notice", classes=("trainer-box-notice",))
            tried = make(gr.HTML, "tried", value=tried_html(host.exchanged))
            job = make(gr.HTML, "job", value=job_html(None, prefix, actions.named["merge"]))
            with gr.Row(elem_classes="trainer-buttons"):
                stop = make(gr.Button, "stop", value="Stop", variant="stop", interactive=False, min_width=90)
                again = make(gr.Button, "lists", value="Read the lists of files again", min_width=120)
            seen = make.hidden_text("seen")
    _connect_tools(prefix, actions, forms, buttons, notice)
    stop.click(actions.stop, None, [notice], **QUIET)
    outputs = [job, stop, tried, tries["back"], seen]
    serve(make, "poll", lambda asked, seen: actions.poll(seen), [seen], outputs)
    _connect_trials(prefix, actions, forms, grids, tries, notice)
    _connect_lists(make, actions, lists, again)
    for curve in CURVES:
        _connect_curve(make, actions, forms[curve.tool], curve, panels[curve.tool, curve.option])
    return actions


def _form(
    name: str,
    actions: ModelsActions,
    make: Maker,
    offers: Mapping[str, Sequence[str]],
    panels: dict[tuple[str, str], Any],
    lists: list[tuple[str, Any]],
) -> Form:
    """Adds each list of files to `lists`, with what it offers."""
    own = TOOLS[name].specs
    specs = {path: spec for path, spec in own.items() if path not in LAST} | {
        path: own[path] for path in LAST if path in own
    }
    prefix = f"{actions.prefix}_{name}"
    adders: dict[str, Any] = {}

    def curve(one: Curve) -> None:
        value = actions.curve(one, {path: specs[path].default for path in one.needs})
        panels[one.tool, one.option] = make(
            gr.HTML, f"{name}_{one.option}_curve", value=value, classes=("trainer-wide",)
        )

    def adder(path: str) -> None:
        spec = specs[path]
        adders[path] = make(
            gr.Dropdown, f"{name}_{path}_add", choices=list(offers.get(spec.files, ())), value=None,
            label=f"{spec.label}: add from the list", classes=("trainer-wide",),
        )  # fmt: skip

    beside: dict[str, Callable[[], None]] = {one.option: partial(curve, one) for one in CURVES if one.tool == name}
    beside |= {
        path: partial(adder, path) for path, spec in specs.items() if spec.kind == "list" and spec.files != "nothing"
    }
    values = actions.begins_with(name, offers)
    form = build_form(specs, prefix=prefix, offers=offers, values=values, beside=beside)
    serve_put_back(Maker(prefix, "models"), form, lambda: values)
    for path, add in adders.items():
        box = form.components[path]
        in_browser(add.input, ADDED, [box, add], [box, add])
    lists += [
        (spec.files, adders.get(path, form.components[path]))
        for path, spec in specs.items()
        if spec.files and spec.files != "nothing"
    ]
    return form


ADDED = """(text, chosen) => {
    const lines = [...(text || "").split("\\n"), chosen || ""];
    return [lines.filter((line) => line.trim()).join("\\n"), null];
}"""
"""A file as one line more, in the browser alone: what is typed meanwhile stays."""


def _buttons(name: str, make: Maker) -> tuple[Any, Any]:
    with gr.Row(elem_classes="trainer-buttons"):
        look = make(gr.Button, f"{name}_look", value="What would be done", min_width=140, visible=name not in LOOKING)
        start = make(gr.Button, f"{name}_start", value=START.get(name, "Start"), variant="primary", min_width=120)
    return look, start


def _connect_tools(
    prefix: str, actions: ModelsActions, forms: Mapping[str, Form], buttons: Mapping[str, tuple[Any, Any]], notice: Any
) -> None:
    def answered(action: Callable[[str, Mapping[str, Any]], str], name: str) -> Callable[..., str]:
        return lambda *raw: action(name, forms[name].values(raw))

    for name, (look, start) in buttons.items():
        look.click(answered(actions.look, name), forms[name].inputs, [notice], **QUIET)
        started = start.click(answered(actions.start, name), forms[name].inputs, [notice], **QUIET)
        in_browser(started.then, hurry(prefix))


def _lay_out_grid(name: str, actions: ModelsActions, make: Maker, tries: dict[str, Any]) -> tuple[Form, Any]:
    """What is tried on the loaded model, below the tool that it is tried of."""
    identity = {"elem_id": actions.trial(name), "elem_classes": "trainer-more"}
    with keep_out_of_ui_config(gr.Accordion(TRIED[name], open=False, **identity)):
        if name == "merge":
            with gr.Row(elem_classes="trainer-buttons"):
                tries["try"] = make(gr.Button, "try", value="Try on the loaded model", variant="primary", min_width=160)
                tries["back"] = make(gr.Button, "put_back", value="Put back", interactive=False, min_width=100)
        offers = {"samplers": list(actions.host.samplers())}
        form = build_form(actions.draw_specs(name), prefix=actions.trial(name), offers=offers)
        serve_put_back(Maker(actions.trial(name), "models"), form, dict)
        button = make(gr.Button, f"{name}_grid", value="Draw the grid", min_width=120)
    return form, button


def _connect_trials(
    prefix: str,
    actions: ModelsActions,
    forms: Mapping[str, Form],
    grids: Mapping[str, tuple[Form, Any]],
    tries: Mapping[str, Any],
    notice: Any,
) -> None:
    def drawn(name: str) -> Callable[..., str]:
        form, drawing = forms[name], grids[name][0]
        count = len(form.inputs)
        return lambda *raw: actions.grid(name, form.values(raw[:count]), drawing.values(raw[count:]))

    merge = forms["merge"]
    events = [
        tries["try"].click(lambda *raw: actions.try_merge(merge.values(raw)), merge.inputs, [notice], **QUIET),
        tries["back"].click(actions.put_back, None, [notice], **QUIET),
    ]
    for name, (drawing, button) in grids.items():
        events.append(button.click(drawn(name), [*forms[name].inputs, *drawing.inputs], [notice], **QUIET))
    for event in events:
        in_browser(event.then, hurry(prefix))


def _connect_lists(make: Maker, actions: ModelsActions, lists: Sequence[tuple[str, Any]], again: Any) -> None:
    """The lists of files are read anew by the button, and by the script when a job has ended."""

    def read(*_: Any) -> list[Any]:
        offers = actions.offers()
        return [gr.update(choices=offers.get(kind, [])) for kind, _ in lists]

    outputs = [component for _, component in lists]
    again.click(read, None, outputs, **QUIET)
    serve(make, "listed", read, [], outputs)


def _connect_curve(make: Maker, actions: ModelsActions, form: Form, curve: Curve, panel: Any) -> None:
    def draw(asked: Asked, *raw: Any) -> list[str]:
        return [actions.curve(curve, dict(zip(curve.needs, raw, strict=True)))]

    name, field = f"{curve.tool}_{curve.option}", field_id(f"{make.prefix}_{curve.tool}", curve.option)
    text = make.hidden_text(f"{name}_drawing")
    event = serve(make, f"{name}_draw", draw, [form.components[path] for path in curve.needs], [text])
    in_browser(event.success, f"(html, shown) => window.modelsPage.drawn({field!r}, html, shown)", [text], [panel])
