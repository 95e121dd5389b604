"""Forms, derived from declared options: one component per option, values in and out as {path: value}."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gradio as gr

from lib_trainer.options.describe import FieldSpec
from lib_trainer.ui.kit.gradio_compat import QUIET, keep_out_of_ui_config

HOST_DEFAULT = "Host's default"
"""What a list of things that the host offers shows for an empty value."""


@dataclass(frozen=True)
class Form:
    """The components of a form, by path, in the order of the options; `boxes` are what holds them, each with the paths
    of what is in it."""

    specs: Mapping[str, FieldSpec]
    components: Mapping[str, Any]
    boxes: Sequence[tuple[Any, tuple[str, ...]]] = ()

    @property
    def inputs(self) -> list[Any]:
        return list(self.components.values())

    def values(self, raw: Sequence[Any]) -> dict[str, Any]:
        """{path: value} from what gradio hands to a function whose inputs are `inputs`."""
        return {path: from_widget(self.specs[path], one) for path, one in zip(self.components, raw, strict=True)}

    def updates(self, values: Mapping[str, Any]) -> list[Any]:
        """What a function whose outputs are `inputs` returns, so that the form shows `values`."""
        return [self._update(path, values) for path in self.components]

    def _update(self, path: str, values: Mapping[str, Any]) -> Any:
        spec = self.specs[path]
        shown: dict[str, Any] = {"visible": spec.shown_in(values)} if spec.when else {}
        return gr.update(value=to_widget(spec, values[path]), **shown)

    @functools.cached_property
    def deciding(self) -> list[str]:
        """Options whose values decide whether others are shown."""
        named = {when.path for spec in self.specs.values() for when in spec.when}
        return [path for path in self.components if path in named]

    def decided_by(self, path: str) -> list[Any]:
        """What a change of that option may show or hide: components, and boxes that may be left empty."""
        return [one for one, _ in self._decided[path]]

    def visibility(self, path: str, raw: Sequence[Any]) -> list[Any]:
        """What a function returns whose outputs are `decided_by(path)`; `raw` is what the components of `deciding`
        hold."""
        values = {one: from_widget(self.specs[one], value) for one, value in zip(self.deciding, raw, strict=True)}
        shown = {path: self.specs[path].shown_in(values) for path in self._conditional}
        return [gr.update(visible=any(shown[one] for one in inside)) for _, inside in self._decided[path]]

    @functools.cached_property
    def _conditional(self) -> list[str]:
        """Options that are not shown always."""
        return [path for path in self.components if self.specs[path].when]

    @functools.cached_property
    def _decided(self) -> dict[str, list[tuple[Any, tuple[str, ...]]]]:
        """By deciding option: each component and box, with the paths of which one must be shown for it to be."""
        own: list[tuple[Any, tuple[str, ...]]] = [(self.components[path], (path,)) for path in self._conditional]
        own += [(box, inside) for box, inside in self.boxes if all(self.specs[one].when for one in inside)]
        return {
            path: [(one, inside) for one, inside in own if any(self._depends(field, path) for field in inside)]
            for path in self.deciding
        }

    def _depends(self, one: str, path: str) -> bool:
        return any(when.path == path for when in self.specs[one].when)

    def connect(self) -> None:
        """Show and hide as values change; a text decides when it is left, and not at every key."""
        deciding = [self.components[path] for path in self.deciding]
        for path in self.deciding:
            component, decided = self.components[path], self.decided_by(path)
            text = isinstance(component, gr.Textbox)
            for event in (component.blur, component.submit) if text else (component.change,):
                event(self._shower(path), deciding, decided, **QUIET)

    def _shower(self, path: str) -> Callable[..., list[Any]]:
        return lambda *raw: self.visibility(path, raw)


def build_form(
    specs: Mapping[str, FieldSpec],
    *,
    prefix: str,
    offers: Mapping[str, Sequence[str]],
    values: Mapping[str, Any] | None = None,
    beside: Mapping[str, Callable[[], None]] | None = None,
) -> Form:
    """Lay out a form of sections in the open gradio context; `values` are shown first, defaults where they say nothing.

    `offers` are names that the host has, by what an option asks for; `beside` lays out more after the option of its
    path.
    """
    shown = {path: spec for path, spec in specs.items() if not spec.headless}
    start = {path: spec.default for path, spec in shown.items()} | dict(values or {})
    made: dict[str, Any] = {}
    boxes: list[tuple[Any, tuple[str, ...]]] = []

    def add(spec: FieldSpec) -> None:
        visible = spec.shown_in(start)
        identity = {"elem_id": f"{prefix}_{spec.path.replace('.', '_')}", "visible": visible}
        made[spec.path] = component(spec, start[spec.path], offers.get(spec.offers, ()), **identity)
        if beside and spec.path in beside:
            beside[spec.path]()

    def opened(box: type[Any], inside: Sequence[FieldSpec], **options: Any) -> Any:
        made_box = box(visible=any(spec.shown_in(start) for spec in inside), **options)
        boxes.append((made_box, tuple(spec.path for spec in inside)))
        return made_box

    for section, group in groupby(shown.values(), key=lambda spec: spec.section):
        inside = list(group)
        name = inside[0].path.partition(".")[0]
        with opened(gr.Column, inside, elem_id=f"{prefix}_section_{name}", elem_classes="trainer-section"):
            title(section)
            for spec in inside:
                if not spec.advanced:
                    add(spec)
            folded = [spec for spec in inside if spec.advanced]
            if folded:
                identity = {"elem_id": f"{prefix}_more_{name}", "elem_classes": "trainer-more"}
                more = opened(gr.Accordion, folded, label=f"More: {section}", open=False, **identity)
                with keep_out_of_ui_config(more):
                    for spec in folded:
                        add(spec)
    form = Form(shown, {path: made[path] for path in shown}, boxes)
    form.connect()
    return form


def title(text: str) -> None:
    """The heading of a section."""
    gr.HTML(f'<h3 class="trainer-title">{text}</h3>')


def to_widget(spec: FieldSpec, value: Any) -> Any:
    """A value as its component shows it."""
    if spec.kind == "list":
        return list(value)
    if spec.offers:
        return value or HOST_DEFAULT
    return spec.shown_as(value) if spec.kind == "choice" else value


def from_widget(spec: FieldSpec, raw: Any) -> Any:
    """A component's value as its option wants it; its own check judges it."""
    if spec.kind == "list":
        return (raw,) if isinstance(raw, str) and raw else tuple(raw or ())
    if spec.offers:
        return "" if raw in (None, HOST_DEFAULT) else raw
    if spec.kind == "choice":
        return {spec.shown_as(choice): choice for choice in spec.choices}.get(str(raw), raw)
    if spec.kind == "str":
        # Windows' "Copy as path" puts a path in quotes
        return str(raw or "").strip().strip('"' if spec.is_path else "")
    return raw


def component(spec: FieldSpec, value: Any, offered: Sequence[str] = (), **identity: Any) -> Any:
    """The component of an option, kept out of the WebUI's saved values. `identity`: elem_id, visible, more classes."""
    classes = ["trainer-field", *(["trainer-wide"] if spec.width else []), *identity.pop("classes", [])]
    common: dict[str, Any] = {"label": label(spec), "value": to_widget(spec, value), "interactive": True}
    common |= {"elem_classes": classes, **({} if spec.bare else {"info": spec.help}), **identity}
    return keep_out_of_ui_config(_component(spec, offered, common))


def _component(spec: FieldSpec, offered: Sequence[str], common: dict[str, Any]) -> Any:
    if spec.kind == "list":
        return gr.Dropdown(list(offered), multiselect=True, **common)
    if spec.offers:
        # a job file may name what this host lacks: it stays visible, and the run says what is wrong
        return gr.Dropdown([HOST_DEFAULT, *offered], allow_custom_value=True, **common)
    if spec.kind == "choice":
        return gr.Dropdown([spec.shown_as(choice) for choice in spec.choices], **common)
    if spec.kind == "bool":
        return gr.Checkbox(**common)
    if spec.kind == "str":
        most = 6 if spec.width in ("grows", "tall") else 1
        return gr.Textbox(lines=2 if spec.width == "tall" else 1, max_lines=most, **common)
    if spec.slider:
        return gr.Slider(minimum=spec.low, maximum=spec.high, step=spec.step, **common)
    # No slider and no bounds: a slider turns what is typed into its bound in silence, and gradio refuses a number out
    # of bounds with an error that names no field. What was typed reaches the job's own check.
    return gr.Number(step=spec.step or _arrow(spec), **common)


def label(spec: FieldSpec) -> str:
    """The label with its unit, unless the label says it already."""
    return spec.label if not spec.unit or spec.unit in spec.label.lower() else f"{spec.label} ({spec.unit})"


def _arrow(spec: FieldSpec) -> float:
    """What one press of an arrow adds: a tenth of the default's size, so that 1e-4 does not become 1.0001."""
    return float(f"{abs(spec.default) / 10:.0e}") if spec.default else 0.1
