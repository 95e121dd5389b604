"""The Dataset tab: panels of HTML, and one hidden box through which `javascript/dataset.js` sends commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from lib_trainer.captions.knowledge import TagScores
from lib_trainer.ui.dataset.actions import PANELS, DatasetActions
from lib_trainer.ui.dataset.view import SetPool, View
from lib_trainer.ui.kit.form import keep_out_of_ui_config

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_name": False}
PREFIX = "dataset"


def no_scores(folder: Path) -> TagScores | None:
    """No tagger is at hand."""
    return None


def build_dataset_page(
    count_tokens: Callable[[str], int],
    scores_of: Callable[[Path], TagScores | None] = no_scores,
    *,
    train_js: str = "() => {}",
) -> DatasetActions:
    """Lay out the tab in the open gradio context.

    `count_tokens` gives the text encoder's tokens of one word; `scores_of` what the tagger knows of a set's pictures;
    `train_js` is a function of the folder that opens the training form with it.
    """
    actions = DatasetActions(SetPool(count_tokens, scores_of))
    with gr.Column(elem_id=f"{PREFIX}_page", elem_classes="trainer-page dataset-page"):
        with gr.Row(elem_classes="dataset-top"):
            folder = _make(
                gr.Textbox,
                "folder",
                label="Folder of the training set",
                scale=4,
                placeholder="Its full path",
                max_lines=1,
            )
            opening = _make(gr.Button, "open", value="Open", variant="primary", min_width=90)
            training = _make(gr.Button, "train", value="Train this set", min_width=120)
        panels = {"notice": _make(gr.HTML, "notice"), "bar": _make(gr.HTML, "bar")}
        with gr.Row(elem_classes="dataset-columns", equal_height=False):
            for name, width in (("tags", 2), ("gallery", 5), ("picture", 3)):
                with gr.Column(scale=width, min_width=220, elem_classes=f"dataset-column-{name}"):
                    panels[name] = _make(gr.HTML, name)
        panels |= {name: _make(gr.HTML, name) for name in ("preview", "work", "marks", "known")}
        panels["download"] = _make(gr.Textbox, "download", value="", visible=False)
        command = _make(gr.Textbox, "command", value="", visible=False)
        send = _make(gr.Button, "send", value="", visible=False)
        state = gr.State(View())
    outputs = [state, *(panels[name] for name in PANELS)]

    def run(view: View, text: str) -> list[Any]:
        return shown(view, actions.run(view, json.loads(text or "{}")))

    def open_set(view: View, path: str) -> list[Any]:
        return shown(view, actions.run(view, {"do": "open", "folder": path}))

    def train(view: View, path: str) -> list[Any]:
        return shown(view, actions.run(view, {"do": "train", "folder": path}))

    answered = "() => { window.trainerDataset?.answered(); return []; }"
    send.click(run, [state, command], outputs, **QUIET).then(None, None, None, _js=answered)
    for event in (opening.click, folder.submit):
        event(open_set, [state, folder], outputs, **QUIET).then(None, None, None, _js=answered)
    download = "(payload) => { window.trainerDataset?.download(payload); return []; }"
    panels["download"].change(None, [panels["download"]], None, _js=download)
    pressed = training.click(train, [state, folder], outputs, **QUIET)
    pressed.then(None, [folder], None, _js=f"(folder) => {{ if (folder.trim()) ({train_js})(folder); return []; }}")
    return actions


def shown(view: View, panels: dict[str, str]) -> list[Any]:
    """The state and every panel that is not what the browser has already."""
    updates = []
    for name in PANELS:
        if view.shown.get(name) == panels[name]:
            updates.append(gr.update())
        else:
            updates.append(gr.update(value=panels[name]))
            view.shown[name] = panels[name]
    return [view, *updates]


def _make(kind: type[Any], name: str, **options: Any) -> Any:
    component = kind(elem_id=f"{PREFIX}_{name}", elem_classes=f"dataset-box-{name}", **options)
    return keep_out_of_ui_config(component)
