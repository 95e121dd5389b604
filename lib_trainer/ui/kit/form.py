"""The form, derived from the schema: one component per option, values in and out as {path: value}."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gradio as gr

from lib_trainer.config import FieldSpec, field_specs

KIND = "network.kind"
"""The option that decides which others are shown."""

HIDDEN = frozenset({"model.checkpoint"})
"""Options that only a run without a loaded model reads."""

WIDE = frozenset(
    {
        "dataset.folder", "output.folder", "model.checkpoint", "preview.prompt", "preview.negative_prompt",
        "network.kind", "network.continue_from", "prior.class_folder", "prior.class_prompt", "difference.before",
        "blocks.rates", "blocks.ranks", "dataset.template",
    }
)  # fmt: skip
"""Texts that take the whole width."""

TALL = frozenset({"preview.prompt", "preview.negative_prompt"})
SAMPLER = "preview.sampler"
HOST_DEFAULT = "Host's default"
"""What the sampler list shows for the schema's empty name."""

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_name": False}
"""How every event of the page runs: past the host's queue, which a generation may hold, and without flicker."""


@dataclass(frozen=True)
class Form:
    """The components of a form, by path, in the order of the schema.

    `boxes` are what holds them, each with the kinds of training that have something in it.
    """

    components: Mapping[str, gr.components.IOComponent]
    boxes: Sequence[tuple[Any, frozenset[str]]] = ()

    @property
    def inputs(self) -> list[gr.components.IOComponent]:
        return list(self.components.values())

    def values(self, raw: Sequence[Any]) -> dict[str, Any]:
        """{path: value} from what gradio hands to a function whose inputs are `inputs`."""
        specs = field_specs()
        return {path: from_widget(specs[path], value) for path, value in zip(self.components, raw, strict=True)}

    def updates(self, values: Mapping[str, Any]) -> list[Any]:
        """What a function whose outputs are `inputs` returns, so that the form shows `values`."""
        specs = field_specs()
        return [gr.update(value=to_widget(specs[path], values[path])) for path in self.components]

    @property
    def shown_or_hidden(self) -> list[Any]:
        """What a choice of the kind shows or hides: every component but the choice itself, and the boxes."""
        return [one for path, one in self.components.items() if path != KIND] + [box for box, _ in self.boxes]

    def visibility(self, raw: Any) -> list[Any]:
        """What a function whose outputs are `shown_or_hidden` returns for a kind as its component shows it."""
        specs = field_specs()
        kind = from_widget(specs[KIND], raw)
        fields = [gr.update(visible=kind in specs[path].kinds) for path in self.components if path != KIND]
        return fields + [gr.update(visible=kind in kinds) for _, kinds in self.boxes]


def build_form(
    *,
    prefix: str,
    samplers: Sequence[str],
    values: Mapping[str, Any] | None = None,
    beside: Mapping[str, Callable[[], None]] | None = None,
) -> Form:
    """Lay out the form in the open gradio context; `values` are shown first, defaults where they say nothing.

    `beside` lays out more after the option of its path.
    """
    shown = [spec for path, spec in field_specs().items() if path not in HIDDEN]
    start = dict(values or {})
    kind = start.get(KIND, field_specs()[KIND].default)
    made: dict[str, gr.components.IOComponent] = {}
    boxes: list[tuple[Any, frozenset[str]]] = []

    def add(spec: FieldSpec) -> None:
        value = to_widget(spec, start.get(spec.path, spec.default))
        made[spec.path] = keep_out_of_ui_config(_component(spec, value, prefix, samplers, kind in spec.kinds))
        if beside and spec.path in beside:
            beside[spec.path]()

    def visible(box: type[Any], specs: Sequence[FieldSpec], **options: Any) -> Any:
        kinds = frozenset(one for spec in specs for one in spec.kinds)
        opened = box(visible=kind in kinds, **options)
        boxes.append((opened, kinds))
        return opened

    for section, group in groupby(shown, key=lambda spec: spec.section):
        specs = list(group)
        name = specs[0].path.partition(".")[0]
        with visible(gr.Column, specs, elem_id=f"{prefix}_section_{name}", elem_classes="trainer-section"):
            gr.HTML(f'<h3 class="trainer-title">{section}</h3>')
            for spec in specs:
                if not spec.advanced:
                    add(spec)
            if any(spec.advanced for spec in specs):
                more = visible(
                    gr.Accordion,
                    [spec for spec in specs if spec.advanced],
                    label=f"More: {section}",
                    open=False,
                    elem_id=f"{prefix}_more_{name}",
                    elem_classes="trainer-more",
                )
                with keep_out_of_ui_config(more):
                    for spec in specs:
                        if spec.advanced:
                            add(spec)
    form = Form({spec.path: made[spec.path] for spec in shown}, boxes)
    made[KIND].change(form.visibility, [made[KIND]], form.shown_or_hidden, **QUIET)
    return form


def keep_out_of_ui_config(component: Any) -> Any:
    """Tell the WebUI not to keep this component's value in ui-config.json.

    It keeps values under tab and label, so that ours would mix with the native fields of the Train tab.
    """
    component.do_not_save_to_config = True
    return component


def to_widget(spec: FieldSpec, value: Any) -> Any:
    """A job's value as the component shows it."""
    if spec.path == SAMPLER:
        return value or HOST_DEFAULT
    return spec.shown_as(value) if spec.kind == "choice" else value


def from_widget(spec: FieldSpec, raw: Any) -> Any:
    """A component's value as the job wants it; the job's own check judges it."""
    if spec.path == SAMPLER:
        return "" if raw in (None, HOST_DEFAULT) else raw
    if spec.kind == "choice":
        return {spec.shown_as(choice): choice for choice in spec.choices}.get(str(raw), raw)
    if spec.kind == "str":
        # Windows' "Copy as path" puts a path in quotes
        return str(raw or "").strip().strip('"' if spec.is_path else "")
    return raw


def _component(
    spec: FieldSpec, value: Any, prefix: str, samplers: Sequence[str], visible: bool
) -> gr.components.IOComponent:
    common: dict[str, Any] = {
        "label": label(spec),
        "info": spec.help,
        "value": value,
        "interactive": True,
        "visible": visible,
        "elem_id": f"{prefix}_{spec.path.replace('.', '_')}",
        "elem_classes": ["trainer-field", "trainer-wide"] if spec.path in WIDE else ["trainer-field"],
    }
    if spec.path == SAMPLER:
        # a job file may name a sampler that this host lacks: it stays visible, and the preview says what is wrong
        return gr.Dropdown([HOST_DEFAULT, *samplers], allow_custom_value=True, **common)
    if spec.kind == "choice":
        return gr.Dropdown([spec.shown_as(choice) for choice in spec.choices], **common)
    if spec.kind == "bool":
        return gr.Checkbox(**common)
    if spec.kind == "str":
        return gr.Textbox(lines=2 if spec.path in TALL else 1, max_lines=6 if spec.path in TALL else 1, **common)
    # No slider and no bounds: a slider turns what is typed into its bound in silence, and gradio refuses a number out
    # of bounds with an error that names no field. What was typed reaches the job's own check.
    return gr.Number(step=spec.step or _arrow(spec), **common)


def label(spec: FieldSpec) -> str:
    """The label with its unit, unless the label says it already."""
    return spec.label if not spec.unit or spec.unit in spec.label.lower() else f"{spec.label} ({spec.unit})"


def _arrow(spec: FieldSpec) -> float:
    """What one press of an arrow adds: a tenth of the default's size, so that 1e-4 does not become 1.0001."""
    return float(f"{abs(spec.default) / 10:.0e}") if spec.default else 0.1
