"""The Tagger's settings: one list of components, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_trainer.captions.tags import TagPatterns, split_tags
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.choices import (
    DEFAULT_CHARACTER_THRESHOLD,
    DEFAULT_TEMPLATE,
)
from lib_trainer.tagging.models.registry import Found
from lib_trainer.tagging.scores.table import FLOOR, Thresholds, parse_overrides
from lib_trainer.tagging.views import Selection
from lib_trainer.ui.kit.form import keep_out_of_ui_config

POLICY_LABELS = {
    "Merge: refresh the tagger's tags, keep the rest": "merge",
    "Replace: write anew, keep what was typed by hand": "replace",
    "Append: new tags behind what is there": "append",
    "Prepend: new tags before what is there": "prepend",
    "Skip: leave captions that exist": "skip",
}
SORT_LABELS = {"Score": "score", "Alphabet": "alphabet", "Frequency in the folder": "frequency"}
WAY_LABELS = {"Mean": "mean", "Union (one is enough)": "union", "Agreement (all must)": "agreement"}
DEVICES = {"Graphics card, if it can": "auto", "Processor": "cpu"}


@dataclass(frozen=True)
class TaggerForm:
    """The components by name, in a fixed order."""

    parts: Mapping[str, Any]

    @property
    def inputs(self) -> list[Any]:
        return list(self.parts.values())

    def values(self, raw: Sequence[Any]) -> Settings:
        return Settings(dict(zip(self.parts, raw, strict=True)))


@dataclass(frozen=True)
class Settings:
    """What the components hold. Each property raises `ConfigError` in one sentence for what cannot be."""

    raw: Mapping[str, Any]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.raw["models"] or ())

    @property
    def device(self) -> str:
        return DEVICES.get(self.raw["device"], "auto")

    @property
    def selection(self) -> Selection:
        folder = str(self.raw["folder"] or "").strip().strip('"')  # Windows' "Copy as path" puts a path in quotes
        how = WAY_LABELS.get(self.raw["how"], "mean")
        return Selection(folder, bool(self.raw["recursive"]), self.models, how)  # type: ignore[arg-type]

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(
            general=float(self.raw["general"] or 0),
            character=float(self.raw["character"] or 0),
            mcut_general=bool(self.raw["mcut_general"]),
            mcut_character=bool(self.raw["mcut_character"]),
            ratings=bool(self.raw["ratings"]),
            overrides=parse_overrides(self.raw["overrides"] or ""),
        )

    @property
    def style(self) -> Style:
        return Style(
            policy=POLICY_LABELS.get(self.raw["policy"], "merge"),  # type: ignore[arg-type]
            sort=SORT_LABELS.get(self.raw["sort"], "score"),  # type: ignore[arg-type]
            underscores=bool(self.raw["underscores"]),
            trigger=" ".join(str(self.raw["trigger"] or "").split()),
            always=tuple(split_tags(self.raw["always"] or "")),
            excluded=TagPatterns.parse(self.raw["exclude"] or "", "Tags to leave out"),
            foreign=bool(self.raw["foreign"]),
            restore=bool(self.raw["restore"]),
            template=str(self.raw["template"] or "").strip() or DEFAULT_TEMPLATE,
        )


def names_of(found: Sequence[Found]) -> list[str]:
    """What the list of models offers: names, or folders where two have the same."""
    names = [item.name for item in found if not item.problem]
    return [item.name if names.count(item.name) == 1 else str(item.folder) for item in found if not item.problem]


class Maker:
    """Makes components with the page's ids, kept out of the WebUI's saved values, and remembers the settings."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.settings: dict[str, Any] = {}

    def __call__(self, kind: type[Any], name: str, **options: Any) -> Any:
        classes = [f"tagger-box-{name.replace('_', '-')}", *options.pop("classes", [])]
        return keep_out_of_ui_config(kind(elem_id=f"{self.prefix}_{name}", elem_classes=classes, **options))

    def setting(self, kind: type[Any], name: str, **options: Any) -> Any:
        self.settings[name] = self(kind, name, **options)
        return self.settings[name]


def title(text: str) -> None:
    gr.HTML(f'<h3 class="trainer-title">{text}</h3>')


def lay_out_models(make: Maker, names: Sequence[str]) -> None:
    make.setting(
        gr.Dropdown,
        "models",
        choices=list(names),
        value=list(names[:1]),
        multiselect=True,
        label="Model",
        classes=["trainer-wide"],
        info="Several are taken together, from their kept scores.",
    )
    with gr.Row():
        make.setting(gr.Dropdown, "how", choices=list(WAY_LABELS), value="Mean", label="Several taggers", min_width=140)
        make.setting(
            gr.Dropdown, "device", choices=list(DEVICES), value=next(iter(DEVICES)), label="Runs on", min_width=140
        )


def lay_out_thresholds(make: Maker, general: float) -> Any:
    """The sliders; returns the preset's button."""
    title("Thresholds")
    make.setting(gr.Slider, "general", minimum=FLOOR, maximum=1.0, step=0.01, value=general, label="General tags")
    make.setting(
        gr.Slider,
        "character",
        minimum=FLOOR,
        maximum=1.0,
        step=0.01,
        value=DEFAULT_CHARACTER_THRESHOLD,
        label="Characters",
    )
    preset = make(gr.Button, "preset", value="Set general tags to the tagger's precision = recall", size="sm")
    with gr.Row(elem_classes="tagger-checks"):
        make.setting(gr.Checkbox, "mcut_general", label="MCut, general", value=False, min_width=120)
        make.setting(gr.Checkbox, "mcut_character", label="MCut, characters", value=False, min_width=120)
        make.setting(gr.Checkbox, "ratings", label="Rating as a tag", value=False, min_width=120)
    make.setting(
        gr.Textbox,
        "overrides",
        label="Lines of single tags",
        classes=["trainer-wide"],
        placeholder="long hair: 0.5, sword: 0.2",
        lines=1,
        max_lines=6,
        value="",
    )
    return preset


def lay_out_captions(make: Maker) -> None:
    title("Captions")
    make.setting(
        gr.Textbox,
        "trigger",
        label="Trigger word",
        info="Stands first.",
        classes=["trainer-wide"],
        max_lines=1,
        value="",
    )
    make.setting(
        gr.Textbox,
        "exclude",
        label="Tags to leave out",
        classes=["trainer-wide"],
        info="Tags, wildcards (* background) and /expressions/, parted by commas.",
        lines=1,
        max_lines=6,
        value="",
    )
    make.setting(
        gr.Dropdown,
        "policy",
        label="A caption that is there",
        classes=["trainer-wide"],
        choices=list(POLICY_LABELS),
        value=next(iter(POLICY_LABELS)),
        info="Tags typed by hand stay, whatever is chosen.",
    )
    make.setting(
        gr.Checkbox,
        "foreign",
        label="Captions found here were made by another tagger: they may go",
        classes=["trainer-wide"],
        value=False,
    )
    make.setting(
        gr.Checkbox,
        "restore",
        label="Bring back tags that were removed by hand or by a plan",
        classes=["trainer-wide"],
        value=False,
    )
    with keep_out_of_ui_config(gr.Accordion("More: captions", open=False, elem_classes="trainer-more")):
        make.setting(gr.Textbox, "always", label="Tags for every picture", max_lines=3, value="")
        make.setting(gr.Dropdown, "sort", label="Order", choices=list(SORT_LABELS), value=next(iter(SORT_LABELS)))
        make.setting(gr.Checkbox, "underscores", label="Underscores (long_hair)", value=False)
        make.setting(
            gr.Textbox,
            "template",
            label="File name",
            info="{name}, {extension} and {folder} are filled in.",
            value=DEFAULT_TEMPLATE,
            max_lines=1,
        )


__all__ = [
    "Maker",
    "Settings",
    "TaggerForm",
    "lay_out_captions",
    "lay_out_models",
    "lay_out_thresholds",
    "names_of",
    "title",
]
