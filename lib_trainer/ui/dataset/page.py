"""The Dataset tab: panels of HTML, and the commands that `javascript/dataset.js` sends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lib_trainer.dataset.desk import DatasetDesk
from lib_trainer.ui.dataset.actions import PANELS, DatasetActions
from lib_trainer.ui.dataset.view import View
from lib_trainer.ui.kit.bridge import DOWNLOAD, Asked, serve
from lib_trainer.ui.kit.form import keep_out_of_ui_config

PREFIX = "dataset"


def build_dataset_page(desk: DatasetDesk, *, train_tabs: Sequence[str] = ()) -> DatasetActions:
    """Lay out the tab in the open gradio context and connect it with the desk.

    `train_tabs`: element ids of the tabs that lead to the training form, which "Train this set" opens one by one.
    """
    actions = DatasetActions(desk)
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
    outputs = [panels[name] for name in PANELS]

    def run(asked: Asked) -> list[Any]:
        view = actions.sessions.view(str(asked.get("session", "")), str(asked.get("heard", "")))
        panels = actions.run(view, asked)
        actions.sessions.sent(view, str(asked.get("nonce", "")))
        return shown(view, panels)

    serve(_make, PREFIX, "command", run, [], outputs)
    panels["download"].change(None, [panels["download"]], None, _js=DOWNLOAD)
    opened = "(folder) => { window.trainerDataset?.send({do: 'open', folder}); return []; }"
    for event in (opening.click, folder.submit):
        event(None, [folder], None, _js=opened)
    train = f"(folder) => {{ window.trainerDataset?.train(folder, {json.dumps(list(train_tabs))}); return []; }}"
    training.click(None, [folder], None, _js=train)
    return actions


def shown(view: View, panels: dict[str, str]) -> list[Any]:
    """Every panel that is not what the browser has already."""
    updates = []
    for name in PANELS:
        if view.shown.get(name) == panels[name]:
            updates.append(gr.update())
        else:
            updates.append(gr.update(value=panels[name]))
            view.shown[name] = panels[name]
    return updates


def _make(kind: type[Any], name: str, **options: Any) -> Any:
    component = kind(elem_id=f"{PREFIX}_{name}", elem_classes=f"dataset-box-{name}", **options)
    return keep_out_of_ui_config(component)
