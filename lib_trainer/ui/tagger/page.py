"""The Tagger: settings on the left, a folder or one picture on the right.

gradio 3.41 has neither a timer nor a way to drop stale requests. `javascript/bridge.js` polls while a job runs, and
`tagger.js` asks what would be written once the settings have rested for a moment, never twice at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.models.registry import KNOWN_MODELS, SUGGESTED, threshold_of
from lib_trainer.ui.kit.bridge import Asked, script, serve
from lib_trainer.ui.kit.form import title
from lib_trainer.ui.kit.gradio_compat import QUIET, in_browser, keep_out_of_ui_config, picture_input
from lib_trainer.ui.tagger.actions import TaggerActions, TaggerOptions
from lib_trainer.ui.tagger.form import (
    SettingMaker,
    TaggerForm,
    lay_out_captions,
    lay_out_folder,
    lay_out_models,
    lay_out_thresholds,
    names_of,
)
from lib_trainer.ui.tagger.view import job_html

__all__ = ["TaggerOptions", "build_tagger_page"]

UNLESS_MOVED = """(told, shown) => {
    const [line, then] = JSON.parse(told);
    return [shown === then ? line : shown];
}"""
"""What a slider shows when the answer to a button is there: where it has been moved meanwhile it stays."""


@dataclass(frozen=True)
class _Page:
    """The components that the events connect, by name."""

    make: SettingMaker
    form: TaggerForm
    parts: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.parts[name]
        except KeyError:
            raise AttributeError(name) from None


def build_tagger_page(desk: TaggerDesk, options: TaggerOptions) -> None:
    """Lay out the page in the open gradio context and connect it with the desk."""
    actions = TaggerActions(desk, options)
    page = _lay_out(desk, options)
    _connect_jobs(page, actions)
    _connect_models(page, actions)
    _connect_folder(page, actions)
    _connect_single(page, actions)


def _lay_out(desk: TaggerDesk, options: TaggerOptions) -> _Page:
    make = SettingMaker(options.prefix)
    parts: dict[str, Any] = {}
    names = names_of(desk.found(again=True))
    with (
        gr.Column(elem_id=f"{options.prefix}_page", elem_classes="trainer-page tagger-page"),
        gr.Row(elem_classes="trainer-columns", equal_height=False),
    ):
        with gr.Column(elem_classes="trainer-left", min_width=340, scale=2):
            with gr.Column(elem_classes="trainer-section"):
                title("Tagger")
                lay_out_models(make, names)
                _lay_out_download(make, parts, opened=not names)
            with gr.Column(elem_classes="trainer-section"):
                parts["preset"] = lay_out_thresholds(make, threshold_of(names[0] if names else ""))
            with gr.Column(elem_classes="trainer-section"):
                lay_out_captions(make)
        with gr.Column(elem_classes="trainer-right", min_width=340, scale=3):
            parts["notice"] = make(gr.HTML, "notice", classes=("trainer-box-notice",))
            with gr.Tabs(elem_id=f"{options.prefix}_tabs"):
                with gr.Tab("Folder", elem_id=f"{options.prefix}_tab_folder"):
                    _lay_out_folder(make, parts, options)
                with gr.Tab("One picture", elem_id=f"{options.prefix}_tab_single"):
                    _lay_out_single(make, parts, options)
            parts |= {name: make.hidden_text(name) for name in ("seen", "single", "complained")}
            parts["mark"] = make(gr.HTML, "mark")  # in the row it would be a third column
    return _Page(make, TaggerForm(dict(make.settings)), parts)


def _lay_out_download(make: SettingMaker, parts: dict[str, Any], *, opened: bool) -> None:
    with gr.Row():
        parts["rescan"] = make(gr.Button, "rescan", value="Look for taggers again", size="sm", min_width=120)
        parts["unload"] = make(gr.Button, "unload", value="Close the tagger", size="sm", min_width=120)
    with keep_out_of_ui_config(gr.Accordion("Download a tagger", open=opened, elem_classes="trainer-more")):
        choices = {model.name: f"{model.name} ({model.about})" if model.about else model.name for model in KNOWN_MODELS}
        parts["known"] = make(
            gr.Dropdown,
            "known",
            choices=list(choices.values()),
            value=choices[SUGGESTED],
            label="From the model hub (0.3 to 1.3 GB)",
            classes=("trainer-wide",),
            info="HF_ENDPOINT names a mirror. Nothing is fetched before you press the button.",
        )
        parts["download"] = make(gr.Button, "download", value="Download", size="sm")


def _lay_out_folder(make: SettingMaker, parts: dict[str, Any], options: TaggerOptions) -> None:
    lay_out_folder(make)
    with gr.Row(elem_classes="trainer-buttons"):
        parts["tag_folder"] = make(gr.Button, "tag_folder", value="Tag", variant="primary", min_width=90)
        parts["stop"] = make(gr.Button, "stop", value="Stop", variant="stop", interactive=False, min_width=90)
        parts["reread"] = make(gr.Button, "reread", value="Read again", min_width=90)
        parts["write"] = make(gr.Button, "write", value="Write captions", variant="primary", min_width=120)
    parts["job"] = make(gr.HTML, "job", value=job_html(None, None, options.prefix))
    parts["summary"] = make(gr.HTML, "summary")
    with gr.Tabs(elem_id=f"{options.prefix}_views"):
        with gr.Tab("Tags"):
            parts["table"] = make(gr.HTML, "table")
            parts["examples"] = make(gr.HTML, "examples")
        with gr.Tab("First captions"):
            parts["captions"] = make(gr.HTML, "captions")
        with gr.Tab("Near the line"):
            parts["border"] = make(gr.HTML, "border")


def _lay_out_single(make: SettingMaker, parts: dict[str, Any], options: TaggerOptions) -> None:
    parts["image"] = make(picture_input, "image", label="Picture", height=320, show_label=False)
    parts["prompt"] = make(
        gr.Textbox, "prompt", label="As a prompt", show_copy_button=True, lines=3, interactive=False, value=""
    )
    parts["send"] = make(gr.Button, "send", value=options.send_label, size="sm")
    parts["caption"] = make(
        gr.Textbox,
        "caption",
        label="As a caption for training",
        show_copy_button=True,
        lines=3,
        interactive=False,
        value="",
    )
    parts["scores"] = make(gr.HTML, "scores")


def _connect_jobs(page: _Page, actions: TaggerActions) -> None:
    def with_settings(action: Callable[[Any], str]) -> Callable[..., list[str]]:
        return lambda *raw: [action(page.form.values(raw)), ""]

    hurry = script(f"taggerPage?.hurry({actions.options.prefix!r})")
    for button, action in ((page.tag_folder, actions.tag), (page.write, actions.write)):
        event = button.click(with_settings(action), page.form.inputs, [page.notice, page.complained], **QUIET)
        in_browser(event.then, hurry)
    downloading = page.download.click(actions.download, [page.known], [page.notice], **QUIET)
    stopped = page.stop.click(actions.stop, None, [page.notice], **QUIET)
    for event in (downloading, stopped):
        in_browser(event.then, hurry)
    page.unload.click(actions.unload, None, [page.notice], **QUIET)
    models = page.form.parts["models"]
    outputs = [page.job, page.tag_folder, page.stop, page.write, models, page.mark, page.seen]

    def poll(asked: Asked, seen: str, chosen: Any) -> Sequence[Any]:
        return actions.poll(seen, chosen)

    serve(page.make, "poll", poll, [page.seen, models], outputs)


def _connect_models(page: _Page, actions: TaggerActions) -> None:
    def rescan(*raw: Any) -> tuple[str, Any]:
        return actions.refresh_models(page.form.values(raw))

    def preset(*raw: Any) -> tuple[str, str]:
        settings = page.form.values(raw)
        notice, line = actions.preset(settings)
        return notice, json.dumps([line, settings.general])

    refresh = script(f"taggerPage?.changed({actions.options.prefix!r})")
    models, general = page.form.parts["models"], page.form.parts["general"]
    page.rescan.click(rescan, page.form.inputs, [page.notice, models], **QUIET)
    line = page.make.hidden_text("line")
    asked = page.preset.click(preset, page.form.inputs, [page.notice, line], **QUIET)
    set_line = in_browser(asked.success, UNLESS_MOVED, [line], [general])
    in_browser(set_line.then, refresh)
    for name, part in page.form.parts.items():  # sliders and boxes alike: the page's clock waits until they rest
        if name != "folder":  # a path that is being typed names other folders all the way
            in_browser(part.change, refresh)


def _connect_folder(page: _Page, actions: TaggerActions) -> None:
    prefix = actions.options.prefix
    shown = [page.notice, page.summary, page.table, page.captions, page.complained]
    details = [page.examples, page.border]
    inputs = page.form.inputs

    def look(asked: Asked, complained: str, *raw: Any) -> list[Any]:
        settings, tag = page.form.values(raw), str(asked.get("tag", ""))
        return actions.reread(settings, tag) if asked.get("again") else actions.look(settings, tag, complained)

    def show(asked: Asked, *raw: Any) -> list[Any]:
        return actions.details(page.form.values(raw), str(asked.get("tag", "")))

    def judge(asked: Asked, complained: str, *raw: Any) -> list[Any]:
        settings, tag = page.form.values(raw), str(asked.get("tag", ""))
        told = actions.judge(settings, asked["verdict"])
        seen = actions.look(settings, tag, complained)
        return [told or seen[0], *seen[1:], *actions.details(settings, tag)]

    serve(page.make, "look", look, [page.complained, *inputs], shown)
    serve(page.make, "show", show, inputs, details)
    serve(page.make, "judge", judge, [page.complained, *inputs], [*shown, *details])
    again = script(f"taggerPage?.look({prefix!r}, true)")
    for event in (page.reread.click, page.form.parts["folder"].submit):
        in_browser(event, again)


def _connect_single(page: _Page, actions: TaggerActions) -> None:
    def single(image: Any, *raw: Any) -> list[str]:
        return actions.single(image, page.form.values(raw))

    def describe(asked: Asked, key: str, *raw: Any) -> list[Any]:
        return actions.describe(key, page.form.values(raw))[1:] if key else [gr.update()] * 3

    shown = [page.scores, page.prompt, page.caption]
    outputs = [page.single, page.notice, *shown]
    page.image.change(single, [page.image, *page.form.inputs], outputs, queue=False, api_name=False)
    # the line moves in the bars, too
    serve(page.make, "describe", describe, [page.single, *page.form.inputs], shown)
    insert = f"(text) => {{ ({actions.options.insert_js})(text); return []; }}"
    page.send.click(actions.send, [page.prompt], [page.notice], **QUIET)
    in_browser(page.send.click, insert, [page.prompt])
