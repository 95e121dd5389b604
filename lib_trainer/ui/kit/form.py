"""Forms, derived from declared options: one component per option, values in and out as {path: value}."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby
from typing import Any

import gradio as gr

from lib_trainer.options.declare import When, given
from lib_trainer.options.describe import FieldSpec
from lib_trainer.ui.kit.bridge import Asked, script, serve
from lib_trainer.ui.kit.gradio_compat import Maker, in_browser, keep_out_of_ui_config
from lib_trainer.ui.kit.notices import field_id

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

    def under(self, values: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
        """For the form's script, JSON: what each component is to show, and what it may show by now where nobody has
        changed it. `usual`: values that are not the declared defaults."""
        told = []
        for path, spec in self.specs.items():
            unset = [spec.default, *([usual[path]] if path in usual else [])]
            told.append([to_widget(spec, values[path]), [to_widget(spec, one) for one in unset]])
        return json.dumps(told)

    def over(self, some: Mapping[str, Any], raw: Sequence[Any]) -> str:
        """For the form's script, as `under` but of the options of `some` alone, and where they still show what they did
        when it was asked for: `raw`, what gradio hands to a function whose inputs are `inputs`."""
        told = [
            [to_widget(spec, some[path]), [shown]] if path in some else None
            for (path, spec), shown in zip(self.specs.items(), raw, strict=True)
        ]
        return json.dumps(told)

    @functools.cached_property
    def deciding(self) -> list[str]:
        """Options whose values decide whether others are shown."""
        named = {path for spec in self.specs.values() for when in spec.when for path in when.paths}
        return [path for path in self.components if path in named]

    @functools.cached_property
    def conditional(self) -> list[tuple[Any, tuple[str, ...]]]:
        """Each component and box that is not shown always, with the paths of which one must be shown for it to be."""
        own: list[tuple[Any, tuple[str, ...]]] = [
            (one, (path,)) for path, one in self.components.items() if self.specs[path].when
        ]
        return own + [
            (box, inside) for box, inside in self.boxes if inside and all(self.specs[one].when for one in inside)
        ]

    def visibility(self, raw: Sequence[Any]) -> list[Any]:
        """What a function returns whose outputs are those of `conditional`; `raw` is what the components of `deciding`
        hold."""
        values = {one: from_widget(self.specs[one], value) for one, value in zip(self.deciding, raw, strict=True)}
        shown = {path: spec.shown_in(values) for path, spec in self.specs.items() if spec.when}
        return [gr.update(visible=any(shown[one] for one in inside)) for _, inside in self.conditional]

    def connect(self, make: Maker) -> None:
        """Show and hide as values change; a text decides when it is left, and not at every key.

        The script asks: an event of gradio's is lost that comes while the last one of its component is on its way.
        """
        deciding = [self.components[path] for path in self.deciding]
        outputs = [one for one, _ in self.conditional]
        serve(make, "visible", lambda asked, *raw: self.visibility(raw), deciding, outputs)
        for component in deciding:
            text = isinstance(component, gr.Textbox)
            for event in (component.blur, component.submit) if text else (component.change,):
                in_browser(event, script(f"trainerForm?.decide({make.prefix!r})"))


def build_form(
    specs: Mapping[str, FieldSpec],
    *,
    prefix: str,
    offers: Mapping[str, Sequence[str]],
    values: Mapping[str, Any] | None = None,
    beside: Mapping[str, Callable[[], None]] | None = None,
    folded: bool = True,
) -> Form:
    """Lay out a form in the open gradio context; `values` are shown first, defaults where they say nothing, and count
    as what nobody has changed.

    The few options that everybody sets come first, then a box that finds any (`javascript/form.js`), then a fold for
    each section, those last whose options all are advanced; one that is the whole form is open, and no fold where the
    form is not `folded`, as it stands in one of its name. `offers` are names that the host has, by what an option asks
    for; `beside` lays out more after the option of its path.
    """
    shown = {path: spec for path, spec in specs.items() if not spec.headless}
    start = {path: spec.default for path, spec in shown.items()} | dict(values or {})
    layout = _Layout(prefix, start, offers, beside or {})
    with gr.Column(elem_id=f"{prefix}_form", elem_classes="trainer-form"):
        with layout.opened(gr.Column, [], elem_id=f"{prefix}_first", elem_classes="trainer-section trainer-first"):
            for spec in sorted((spec for spec in shown.values() if spec.first), key=lambda spec: spec.first):
                layout.add(spec)
        gr.HTML(finder_html(prefix, shown, start), elem_id=f"{prefix}_finder", elem_classes="trainer-box-finder")
        sections = [
            (section, [spec for spec in group if not spec.first])
            for section, group in groupby(shown.values(), key=lambda spec: spec.section)
        ]
        for section, inside in sorted(sections, key=lambda one: all(spec.advanced for spec in one[1])):
            layout.add_section(section if folded else "", inside, is_open=len(inside) == len(shown))
    form = Form(shown, {path: layout.made[path] for path in shown}, layout.boxes)
    form.connect(Maker(prefix, "trainer"))
    return form


@dataclass(frozen=True)
class _Layout:
    """A form that is being laid out: what it starts with, and what has been made so far."""

    prefix: str
    start: Mapping[str, Any]
    offers: Mapping[str, Sequence[str]]
    beside: Mapping[str, Callable[[], None]]
    made: dict[str, Any] = field(default_factory=dict)
    boxes: list[tuple[Any, tuple[str, ...]]] = field(default_factory=list)

    def add(self, spec: FieldSpec) -> None:
        identity = {"elem_id": field_id(self.prefix, spec.path), "visible": spec.shown_in(self.start)}
        self.made[spec.path] = component(
            spec, self.start[spec.path], self.offers.get(spec.offers or spec.files, ()), **identity
        )
        if spec.path in self.beside:
            self.beside[spec.path]()

    def opened(self, box: type[Any], inside: Sequence[FieldSpec], **options: Any) -> Any:
        """A box that is hidden where all options in it are; one without options of its own always is there."""
        visible = not inside or any(spec.shown_in(self.start) for spec in inside)
        made_box = keep_out_of_ui_config(box(visible=visible, **options))
        self.boxes.append((made_box, tuple(spec.path for spec in inside)))
        return made_box

    def add_section(self, section: str, inside: Sequence[FieldSpec], *, is_open: bool) -> None:
        """A fold, or nothing around it without a name; what is advanced is folded once more, unless all of it is."""
        name = inside[0].path.partition(".")[0]
        plain = [spec for spec in inside if not spec.advanced]
        folded = [spec for spec in inside if spec.advanced]
        identity = {"elem_id": f"{self.prefix}_section_{name}", "elem_classes": "trainer-section"}
        fold = {"label": section, "open": is_open, "elem_classes": "trainer-section trainer-fold"}
        box, around = (gr.Accordion, identity | fold) if section else (gr.Column, identity)
        with self.opened(box, inside, **around):
            for spec in plain or folded:
                self.add(spec)
            if plain and folded:
                identity = {"elem_id": f"{self.prefix}_more_{name}", "elem_classes": "trainer-more trainer-fold"}
                with self.opened(gr.Accordion, folded, label=f"More: {section}", open=False, **identity):
                    for spec in folded:
                        self.add(spec)


FINDER = (
    '<input type="search" class="trainer-find" autocomplete="off" spellcheck="false" aria-label="Find an option" '
    'placeholder="Find an option">',
    '<div class="trainer-found" role="status"></div>',
)
"""Box and answers; a form of one section shows all that it has."""


def finder_html(prefix: str, specs: Mapping[str, FieldSpec], start: Mapping[str, Any]) -> str:
    """The box that finds an option, where there is more than one section, and what its script must know of each, by the
    element's id. `start`: what options show at first, where that is not their default.

    `path`; `base`: what it shows where nobody has changed it; `first`: whether it is one of those whose change is not
    marked, as everybody sets them; `words`: what it is found by beside its label and help; `when`: the conditions of
    its being shown.
    """
    facts = {field_id(prefix, path): _facts(spec, specs, prefix, start) for path, spec in specs.items()}
    told = escape(json.dumps(facts, ensure_ascii=False))
    box, found = FINDER if len({spec.section for spec in specs.values()}) > 1 else ("", "")
    return (
        f'<div class="trainer-finder" data-prefix="{escape(prefix)}" data-facts="{told}">{box}'
        '<button type="button" class="trainer-small trainer-back-all" hidden></button>'
        f'<button type="button" class="trainer-small trainer-undo" hidden>Undo</button>{found}</div>'
    )


def _facts(spec: FieldSpec, specs: Mapping[str, FieldSpec], prefix: str, start: Mapping[str, Any]) -> dict[str, Any]:
    words = " ".join([spec.path.replace(".", " ").replace("_", " "), spec.path, *map(spec.shown_as, spec.choices)])
    facts: dict[str, Any] = {"path": spec.path, "words": words}
    facts["base"] = as_read(spec, start.get(spec.path, spec.default))
    if spec.first:
        facts["first"] = True
    if spec.when:
        facts["when"] = [_when_facts(when, specs, prefix) for when in spec.when]
    return facts


def _when_facts(when: When, specs: Mapping[str, FieldSpec], prefix: str) -> dict[str, Any]:
    values = [as_read(specs[when.path], value) for value in when.values]
    others = [_when_facts(other, specs, prefix) for other in when.others]
    own = {"id": field_id(prefix, when.path), "values": values, "negated": when.negated, "others": others}
    return {**own, "told": condition(when, specs)}


def usual_html(
    specs: Mapping[str, FieldSpec], usual: Mapping[str, Any], idle: Collection[str], note: str, prefix: str
) -> str:
    """What the loaded model has of its own, with a `note` on it, for the form's script: what options show that nobody
    has changed, where that is not the declared default, and those that it does not read."""
    shown = {field_id(prefix, path): as_read(specs[path], value) for path, value in usual.items()}
    told = {"usual": shown, "idle": [field_id(prefix, path) for path in idle]}
    facts = escape(json.dumps(told, ensure_ascii=False))
    return f'<div class="trainer-note" data-usual="{facts}">{escape(note)}</div>'


def as_read(spec: FieldSpec, value: Any) -> str:
    """A value as a script reads it from the option's component."""
    shown = to_widget(spec, value)
    return str(shown).lower() if isinstance(shown, bool) else str(shown)


def condition(when: When, specs: Mapping[str, FieldSpec]) -> str:
    """A condition in the words of a page: 'where “EMA” is on'."""
    own = _own_condition(replace(when, others=()), specs)
    return " or ".join([own, *(condition(other, specs) for other in when.others)])


def _own_condition(when: When, specs: Mapping[str, FieldSpec]) -> str:
    spec = specs[when.path]
    if when == given(when.path):
        return f"where “{spec.label}” is set"
    if spec.kind == "bool":
        return f"where “{spec.label}” is {'on' if when.values == (True,) else 'off'}"
    names = [spec.shown_as(value) if spec.kind == "choice" else str(value) for value in when.values]
    some = " or ".join(names[:2]) if len(names) < 3 else f"{', '.join(names[:2])} or another"
    return f"{'unless' if when.negated else 'where'} “{spec.label}” is {some}"


def serve_put_back(make: Maker, form: Form, usual: Callable[[], Mapping[str, Any]]) -> None:
    """Let the script put options back to what nobody has changed, and take the last such step back.

    `usual` gives values that are not the declared defaults: those of the model that is loaded.
    """
    before, text = make.hidden_text("before"), make.hidden_text("back_values")

    def put_back(asked: Asked, kept: str, *raw: Any) -> list[str]:
        values = form.values(raw)
        if asked.get("undo"):
            old = {path: value for path, value in json.loads(kept or "{}").items() if path in form.components}
            return ["", form.over(old, raw)]
        paths = [path for path in asked.get("paths", ()) if path in form.components]
        own = usual()
        back = {path: own.get(path, form.specs[path].default) for path in paths}
        return [json.dumps({path: values[path] for path in paths}), form.over(back, raw)]

    put(serve(make, "put_back", put_back, [before, *form.inputs], [before, text]), make, form, text)


def put(event: Any, make: Maker, form: Form, text: Any) -> None:
    """Let the script put what an event has answered, in `text`, into the form: that of `Form.under` or `Form.over`, or
    empty. What the form shows is read and written in one go, so that no change comes between."""
    js = f"(text, ...shown) => window.trainerForm.under({make.prefix!r}, text, shown)"
    in_browser(event.success, js, [text], form.inputs)


def serve_under(
    make: Maker,
    form: Form,
    name: str,
    values: Callable[[], Mapping[str, Any] | None],
    usual: Callable[[], Mapping[str, Any]],
) -> None:
    """Let the script ask for `name`: the form shows `values` wherever nobody has changed it by the time they are there.

    `values` may give None: then nothing changes. `usual` is that of `serve_put_back`.
    """
    text = make.hidden_text(f"{name}_values")

    def answer(asked: Asked) -> list[str]:
        found = values()
        return ["" if found is None else form.under(found, usual())]

    put(serve(make, name, answer, [], [text]), make, form, text)


def title(text: str) -> None:
    """The heading of a section."""
    gr.HTML(f'<h3 class="trainer-title">{text}</h3>')


def to_widget(spec: FieldSpec, value: Any) -> Any:
    """A value as its component shows it."""
    if spec.kind == "list":
        return "\n".join(value) if spec.files else list(value)
    if spec.offers:
        return value or HOST_DEFAULT
    return spec.shown_as(value) if spec.kind == "choice" else value


def from_widget(spec: FieldSpec, raw: Any) -> Any:
    """A component's value as its option wants it; its own check judges it."""
    if spec.kind == "list" and spec.files:
        return tuple(line for line in (one.strip().strip('"') for one in str(raw or "").splitlines()) if line)
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
    marks = {"trainer-wide": spec.width, "trainer-switch": spec.kind == "bool"}
    classes = ["trainer-field", *(one for one, there in marks.items() if there), *identity.pop("classes", [])]
    common: dict[str, Any] = {"label": label(spec), "value": to_widget(spec, value), "interactive": True}
    common |= {"elem_classes": classes, **({} if spec.bare else {"info": spec.help}), **identity}
    return keep_out_of_ui_config(_component(spec, offered, common))


def _component(spec: FieldSpec, offered: Sequence[str], common: dict[str, Any]) -> Any:
    if spec.kind == "list" and spec.files:
        return gr.Textbox(lines=2, max_lines=8, placeholder="One a line", **common)
    if spec.kind == "list":
        return gr.Dropdown(list(offered), multiselect=True, **common)
    if spec.files:  # what is not in the list is written
        return gr.Dropdown(list(offered), allow_custom_value=True, **common)
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
