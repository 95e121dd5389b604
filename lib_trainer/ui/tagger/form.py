"""The Tagger's settings on its page: where each of the declared ones stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_trainer.tagging.models.registry import Found
from lib_trainer.tagging.settings import TaggerSettings, tagger_specs
from lib_trainer.ui.kit.form import component, from_widget, title
from lib_trainer.ui.kit.gradio_compat import Maker, keep_out_of_ui_config


@dataclass(frozen=True)
class TaggerForm:
    """The components by name, in a fixed order."""

    parts: Mapping[str, Any]

    @property
    def inputs(self) -> list[Any]:
        return list(self.parts.values())

    def values(self, raw: Sequence[Any]) -> TaggerSettings:
        specs = tagger_specs()
        return TaggerSettings(**{name: from_widget(specs[name], one) for name, one in zip(self.parts, raw)})


def names_of(found: Sequence[Found]) -> list[str]:
    """What the list of models offers: names, or folders where two have the same."""
    names = [item.name for item in found if not item.problem]
    return [item.name if names.count(item.name) == 1 else str(item.folder) for item in found if not item.problem]


class SettingMaker(Maker):
    """Makes components, and remembers those that are settings."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix, "tagger")
        self.settings: dict[str, Any] = {}

    def setting(self, name: str, value: Any = None, offered: Sequence[str] = (), **layout: Any) -> None:
        """A declared setting, with its default where no value is given."""
        spec = tagger_specs()[name]
        classes = [f"tagger-box-{name.replace('_', '-')}"]
        start = spec.default if value is None else value
        identity = {"elem_id": f"{self.prefix}_{name}", "classes": classes, **layout}
        self.settings[name] = component(spec, start, offered, **identity)


def lay_out_models(make: SettingMaker, names: Sequence[str]) -> None:
    make.setting("models", tuple(names[:1]), names)
    with gr.Row():
        for name in ("how", "device"):
            make.setting(name, min_width=140)


def lay_out_thresholds(make: SettingMaker, general: float) -> Any:
    """The sliders; returns the preset's button."""
    title("Thresholds")
    make.setting("general", general)
    make.setting("character")
    preset = make(gr.Button, "preset", value="Set general tags to the tagger's precision = recall", size="sm")
    with gr.Row(elem_classes="tagger-checks"):
        for name in ("mcut_general", "mcut_character", "ratings"):
            make.setting(name, min_width=120)
    make.setting("overrides")
    return preset


def lay_out_captions(make: SettingMaker) -> None:
    title("Captions")
    for name in ("trigger", "exclude", "policy", "foreign", "restore"):
        make.setting(name)
    with keep_out_of_ui_config(gr.Accordion("More: captions", open=False, elem_classes="trainer-more")):
        for name in ("always", "sort", "underscores", "template"):
            make.setting(name)


def lay_out_folder(make: SettingMaker) -> None:
    for name in ("folder", "recursive"):
        make.setting(name)
