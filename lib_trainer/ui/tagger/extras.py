"""The Tagger as a step of the WebUI's Extras tab: a few of its settings, and a caption for the picture in hand."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image

from lib_trainer.tagging.captions.style import Guess
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.models.registry import threshold_of
from lib_trainer.tagging.scores.table import select
from lib_trainer.tagging.settings import TaggerSettings, tagger_specs
from lib_trainer.ui.kit.form import component, from_widget
from lib_trainer.ui.tagger.actions import caption_of
from lib_trainer.ui.tagger.form import names_of

STEP = ("models", "general", "character", "exclude", "trigger")
"""The settings of the step."""


def build_extras_step(desk: TaggerDesk) -> dict[str, Any]:
    """The step's components by the names of `caption_picture`'s settings."""
    names, specs = names_of(desk.found()), tagger_specs()
    start = {"models": tuple(names[:1]), "general": threshold_of(names[0] if names else "")}
    made = {}
    for name in STEP:
        value = start.get(name, specs[name].default)
        made[name] = component(specs[name], value, names, elem_id=f"tagger_extras_{name}")
        # the rest of the tab is kept in ui-config.json, and so are these; another day a model may not be there
        made[name].do_not_save_to_config = name == "models"
    return made


def caption_picture(desk: TaggerDesk, image: Image.Image, **raw: Any) -> str:
    """The picture's tags as a caption for training; `raw` is what the step's components hold. Raises `TrainerError`,
    which the WebUI shows as its sentence.

    The WebUI calls its Extras while it holds its queue: the tagger must not wait for a turn there.
    """
    settings = TaggerSettings(**{name: from_widget(tagger_specs()[name], value) for name, value in raw.items()})
    thresholds, style = settings.thresholds, settings.style
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=0)
    table = desk.single(desk.remember(buffer.getvalue()), settings.models, settings.how, waits=False)
    chosen = select(table, thresholds, style.excluded)
    found = zip(table.columns[chosen], table.values[chosen])
    return caption_of([Guess(table.labels.names[column], float(score), "") for column, score in found], style, False)
