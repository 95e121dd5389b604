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
from lib_trainer.ui.kit.gradio_compat import Maker, in_browser

PREFIX = "dataset"


def build_dataset_page(desk: DatasetDesk, *, train_tabs: Sequence[str] = ()) -> DatasetActions:
    """Lay out the tab in the open gradio context and connect it with the desk.

    `train_tabs`: element ids of the tabs that lead to the training form, which "Train this set" opens one by one.
    """
    actions, make = DatasetActions(desk), Maker(PREFIX, "dataset")
    with gr.Column(elem_id=f"{PREFIX}_page", elem_classes="trainer-page dataset-page"):
        with gr.Row(elem_classes="dataset-top"):
            folder = make(
                gr.Textbox,
                "folder",
                label="Folder of the training set",
                scale=4,
                placeholder="Its full path",
                max_lines=1,
            )
            opening = make(gr.Button, "open", value="Open", variant="primary", min_width=90)
            training = make(gr.Button, "train", value="Train this set", min_width=120)
        panels = {"notice": make(gr.HTML, "notice"), "bar": make(gr.HTML, "bar")}
        with gr.Row(elem_classes="dataset-columns", equal_height=False):
            for name, width in (("tags", 2), ("gallery", 5), ("picture", 3)):
                with gr.Column(scale=width, min_width=220, elem_classes=f"dataset-column-{name}"):
                    panels[name] = make(gr.HTML, name)
        panels |= {name: make(gr.HTML, name) for name in ("preview", "work", "marks", "known")}
        panels["download"] = make.hidden_text("download")
    outputs = [panels[name] for name in PANELS]

    def run(asked: Asked) -> list[Any]:
        view = actions.sessions.view(str(asked.get("session", "")), str(asked.get("heard", "")))
        panels = actions.run(view, asked)
        actions.sessions.sent(view, str(asked.get("nonce", "")))
        return shown(view, panels)

    serve(make, "command", run, [], outputs)
    in_browser(panels["download"].change, DOWNLOAD, [panels["download"]])
    opened = "(folder) => { window.trainerDataset?.send({do: 'open', folder}); return []; }"
    for event in (opening.click, folder.submit):
        in_browser(event, opened, [folder])
    train = f"(folder) => {{ window.trainerDataset?.train(folder, {json.dumps(list(train_tabs))}); return []; }}"
    in_browser(training.click, train, [folder])
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
