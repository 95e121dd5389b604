"""The Tagger as a step of the WebUI's Extras tab: a few settings, and a caption for the picture in hand."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import gradio as gr
from PIL import Image

from lib_trainer.captions.tags import TagPatterns
from lib_trainer.tagging.captions.style import Guess, Style
from lib_trainer.tagging.choices import DEFAULT_CHARACTER_THRESHOLD
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.models.registry import threshold_of
from lib_trainer.tagging.scores.table import FLOOR, Thresholds, select
from lib_trainer.ui.kit.form import keep_out_of_ui_config
from lib_trainer.ui.tagger.actions import caption_of
from lib_trainer.ui.tagger.form import names_of


def build_extras_step(desk: TaggerDesk) -> dict[str, Any]:
    """The step's components by the names of `caption_picture`'s arguments."""
    names = names_of(desk.found())
    made = {
        "model": gr.Dropdown(
            names,
            value=names[0] if names else None,
            label="Tagger",
            info="Found below models/",
            elem_id="tagger_extras_model",
        ),
        "general": gr.Slider(
            FLOOR, 1, value=threshold_of(names[0] if names else ""), step=0.01, label="General tags above"
        ),
        "character": gr.Slider(FLOOR, 1, value=DEFAULT_CHARACTER_THRESHOLD, step=0.01, label="Characters above"),
        "exclude": gr.Textbox("", label="Tags that the tagger leaves out", max_lines=3),
        "trigger": gr.Textbox("", label="Trigger word in front of the tags", max_lines=1),
    }
    keep_out_of_ui_config(made["model"])  # another day it may not be there
    return made


def caption_picture(
    desk: TaggerDesk,
    image: Image.Image,
    model: str | None,
    general: float,
    character: float,
    exclude: str,
    trigger: str,
) -> str:
    """The picture's tags as a caption for training. Raises `TrainerError`, which the WebUI shows as its sentence.

    The WebUI calls its Extras while it holds its queue: the tagger must not wait for a turn there.
    """
    thresholds = Thresholds(general=general, character=character)
    style = Style(excluded=TagPatterns.parse(exclude or "", "Tags that the tagger leaves out"), trigger=trigger or "")
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=0)
    table = desk.single(desk.remember(buffer.getvalue()), [model] if model else [], waits=False)
    chosen = select(table, thresholds, style.excluded)
    found = zip(table.columns[chosen], table.values[chosen])
    return caption_of([Guess(table.labels.names[column], float(score), "") for column, score in found], style, False)
