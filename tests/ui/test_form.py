"""The form shows every option of the schema, and gives back what a job needs."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import gradio as gr
import pytest

from lib_trainer.config import JobConfig, field_specs, from_values, to_values
from lib_trainer.config.base import ADAPTERS, KINDS
from lib_trainer.refusals import ConfigError
from lib_trainer.ui.kit.form import HOST_DEFAULT, Form, build_form, finder_html, from_widget, label, to_widget

NATIVE_LABELS = {
    "Name", "Initialization text", "Number of vectors per token", "Embedding", "Hypernetwork",
    "Embedding Learning rate", "Hypernetwork Learning rate", "Gradient Clipping", "Batch size",
    "Gradient accumulation steps", "Dataset directory", "Log directory", "Prompt template", "Width", "Height",
    "Do not resize images", "Max steps", "Learning rate",
}  # fmt: skip
"""Labels of the WebUI's own Train tab."""

SAMPLE: dict[str, Any] = {
    "dataset.folder": "/pictures/cat",
    "dataset.width": 768,
    "network.alpha": 0.5,
    "optimizer.name": "AdamW8bit",
    "optimizer.unet_lr": 2.5e-6,
    "training.gradient_checkpointing": True,
    "training.max_tokens": 150,
    "training.seed": 2**32 - 1,
    "output.name": "cat",
    "preview.prompt": "a <cat>\nsecond line",
    "preview.sampler": "Euler",
}


def make(**options: Any) -> tuple[Form, gr.Blocks]:
    arguments = {"prefix": "trainer", "offers": {"samplers": ("Euler", "DPM++ 2M")}, **options}
    with gr.Blocks(analytics_enabled=False) as blocks:
        form = build_form(field_specs(), **arguments)
    return form, blocks


def through_gradio(form: Form, job: JobConfig) -> list[Any]:
    """What the page would send back after it was shown a job: gradio's own conversions, both ways."""
    values = to_values(job)
    shown = [one.postprocess(to_widget(form.specs[path], values[path])) for path, one in form.components.items()]
    return [c.preprocess(value) for c, value in zip(form.inputs, shown, strict=True)]


def test_every_option_has_a_component_with_its_label_help_and_id() -> None:
    form, _ = make()
    assert list(form.components) == [path for path, spec in field_specs().items() if not spec.headless]
    for path, component in form.components.items():
        spec = field_specs()[path]
        assert component.label == label(spec)
        assert component.get_config()["info"] == spec.help
        assert component.elem_id == "trainer_" + path.replace(".", "_")


def test_no_component_is_kept_in_the_webuis_ui_config() -> None:
    _, blocks = make()
    kept = [block for block in blocks.blocks.values() if isinstance(block, gr.components.IOComponent)]
    assert [b.label for b in kept if b.label and not getattr(b, "do_not_save_to_config", False)] == []


def test_labels_differ_from_the_native_train_tabs() -> None:
    form, _ = make()
    labels = [component.label for component in form.inputs]
    assert not NATIVE_LABELS & set(labels)
    assert len(labels) == len(set(labels))


def test_no_number_is_turned_into_its_bound() -> None:
    """A slider would do so in the browser, and a number with bounds is refused by gradio without the field's name."""
    form, _ = make()
    assert not [path for path, component in form.components.items() if isinstance(component, gr.Slider)]
    for path, component in form.components.items():
        if isinstance(component, gr.Number):
            assert (component.minimum, component.maximum) == (None, None), path
            assert component.preprocess(-4) == -4


def test_more_is_laid_out_beside_an_option() -> None:
    made: list[gr.Row] = []

    def more() -> None:
        made.append(gr.Row())

    form, blocks = make(beside={"output.name": more})
    ids = list(blocks.blocks)
    name, following = form.components["output.name"], form.components["output.save_every"]
    assert ids.index(name._id) < ids.index(made[0]._id) < ids.index(following._id)


def test_choices_are_the_schemas() -> None:
    form, _ = make()
    for path, spec in field_specs().items():
        if spec.kind == "choice":
            assert form.components[path].choices == [spec.shown_as(choice) for choice in spec.choices]
    assert form.components["preview.sampler"].choices == [HOST_DEFAULT, "Euler", "DPM++ 2M"]


def test_defaults_pass_through_the_page_unchanged() -> None:
    form, _ = make()
    assert from_values(form.values(through_gradio(form, JobConfig()))) == JobConfig()


def test_other_values_pass_through_the_page_unchanged() -> None:
    form, _ = make()
    job = from_values(SAMPLE)
    back = from_values(form.values(through_gradio(form, job)))
    assert back == job
    assert back.training.max_tokens == 150, "a whole number although the list shows texts"


@pytest.mark.parametrize("typed", ["1e-4", "0.0001", "2.5e-7"])
def test_small_learning_rates_keep_their_digits(typed: str) -> None:
    form, _ = make()
    component = form.components["optimizer.unet_lr"]
    assert component.preprocess(float(typed)) == float(typed)
    assert component.postprocess(float(typed)) == float(typed)


def test_numbers_out_of_range_reach_the_jobs_own_check() -> None:
    form, _ = make()
    index = list(form.components).index("optimizer.unet_lr")
    raw = through_gradio(form, JobConfig())
    raw[index] = form.inputs[index].preprocess(5)
    with pytest.raises(ConfigError, match=r"optimizer\.unet_lr = 5"):
        from_values(form.values(raw))


def test_an_empty_number_is_named() -> None:
    form, _ = make()
    index = list(form.components).index("training.max_steps")
    raw = through_gradio(form, JobConfig())
    raw[index] = form.inputs[index].preprocess(None)
    with pytest.raises(ConfigError, match=r"training\.max_steps is empty"):
        from_values(form.values(raw))


def test_paths_lose_the_quotes_of_copy_as_path_and_prompts_keep_theirs() -> None:
    specs = field_specs()
    assert from_widget(specs["dataset.folder"], ' "C:\\my cats" ') == "C:\\my cats"
    assert from_widget(specs["preview.prompt"], 'a sign that says "cat"') == 'a sign that says "cat"'


def test_the_sampler_list_stands_for_the_hosts_default() -> None:
    spec = field_specs()["preview.sampler"]
    assert to_widget(spec, "") == HOST_DEFAULT
    assert from_widget(spec, HOST_DEFAULT) == ""


def test_units_are_not_said_twice() -> None:
    specs = field_specs()
    assert label(specs["dataset.width"]) == "Training width (px)"
    assert label(specs["preview.steps"]) == "Preview steps"


def shown(form: Form, blocks: gr.Blocks, path: str, values: dict[str, Any]) -> dict[str, bool]:
    """What gradio makes visible when the component of `path` has changed and the form holds `values`: what its event
    lets the script ask for, {elem_id: visible}."""
    component = form.components[path]
    name = "blur" if isinstance(component, gr.Textbox) else "change"
    assert any(
        one["targets"] in ([component._id], [(component._id, name)]) and one.get("trigger", name) == name
        and "trainerForm?.decide('trainer')" in str(one["js"]) for one in blocks.dependencies
    )  # fmt: skip
    button = next(one._id for one in blocks.blocks.values() if one.elem_id == "trainer_visible")
    event = next(one for one in blocks.dependencies if one["targets"] in ([button], [(button, "click")]))
    assert event["inputs"][1:] == [form.components[one]._id for one in form.deciding]
    function = blocks.fns[blocks.dependencies.index(event)].fn
    whole = {one: spec.default for one, spec in field_specs().items()} | values
    raw = [to_widget(field_specs()[one], whole[one]) for one in form.deciding]
    ids = [blocks.blocks[one].elem_id for one in event["outputs"][1:]]
    return dict(zip(ids, [update["visible"] for update in function("", *raw)[1:]], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_other_kinds_are_hidden(kind: str) -> None:
    form, blocks = make()
    assert form.components["network.rank"].visible and not form.components["hypernetwork.sizes"].visible
    visible = shown(form, blocks, "network.kind", {"network.kind": kind})
    for path, spec in field_specs().items():
        if not spec.headless and len(spec.kinds) < len(KINDS) and len(spec.when) == 1:
            assert visible["trainer_" + path.replace(".", "_")] == (kind in spec.kinds)
    assert "trainer_section_dataset" not in visible and "trainer_dataset_width" not in visible, "they are always there"
    assert visible["trainer_section_hypernetwork"] == (kind == "hypernetwork")
    assert visible["trainer_section_finetune"] == (kind == "checkpoint")
    assert visible["trainer_section_embedding"] == (kind in ("embedding", "pivotal"))
    assert visible["trainer_section_blocks"] == (kind in ADAPTERS)


@pytest.mark.parametrize(
    ("path", "where", "on", "off"),
    [
        ("optimizer.cycles", "optimizer.schedule", "cosine_with_restarts", "cosine"),
        ("optimizer.ema_decay", "optimizer.ema", True, False),
        ("prior.class_pictures", "prior.class_prompt", "a dog", "  "),
        ("prior.weight", "prior.class_prompt", "a dog", ""),
    ],
)
def test_fields_are_shown_where_other_options_give_them_a_meaning(path: str, where: str, on: Any, off: Any) -> None:
    kind = {"network.kind": "checkpoint"}
    name = "trainer_" + path.replace(".", "_")
    for value, expected in ((on, True), (off, False)):
        form, blocks = make(values=kind | {where: value})
        assert form.components[path].visible == expected
        assert shown(form, blocks, where, kind | {where: value})[name] == expected
    other = kind | {where: on, "network.kind": "hypernetwork"}
    form, blocks = make()
    assert shown(form, blocks, where, other)[name] == (path.startswith("optimizer.")), "each condition must hold"


def test_a_box_with_nothing_in_it_is_hidden() -> None:
    form, blocks = make()
    for on in (True, False):
        visible = shown(form, blocks, "buckets.enabled", {"buckets.enabled": on})
        assert visible["trainer_more_buckets"] is on
        assert visible["trainer_buckets_step"] is on  # it stands in the box


def test_every_condition_is_on_an_option_that_is_shown() -> None:
    form, _ = make()
    named = {path for spec in field_specs().values() for when in spec.when for path in when.paths}
    assert named == set(form.deciding) >= {"network.kind", "optimizer.name", "prior.class_prompt", "optimizer.schedule"}
    for spec in field_specs().values():
        for when in (one for condition in spec.when for one in (condition, *condition.others)):
            other = field_specs()[when.path]
            assert when.negated or {type(value) for value in when.values} == {type(other.default)}


def test_a_form_that_is_opened_for_a_kind_shows_its_fields() -> None:
    form, _ = make(values={"network.kind": "checkpoint"})
    assert form.components["finetune.unet_lr"].visible
    assert not form.components["network.rank"].visible and not form.components["optimizer.unet_lr"].visible


def test_an_option_may_hang_on_one_of_several_others() -> None:
    for values, expected in (({}, False), ({"augment.colour": 0.1}, True), ({"augment.crop": True}, True)):
        form, blocks = make(values=values)
        assert form.components["augment.count"].visible == expected
        for path in ("augment.colour", "augment.crop"):
            assert shown(form, blocks, path, values)["trainer_augment_count"] == expected


def facts(form: Form) -> dict[str, Any]:
    """What the form's script is told."""
    html = finder_html("trainer", form.specs, {})
    found = re.search(r'data-facts="([^"]*)"', html)
    assert found is not None
    told: dict[str, Any] = json.loads(unescape(found.group(1)))
    return told


def test_the_script_knows_what_each_component_shows_at_first() -> None:
    form, _ = make()
    told = facts(form)
    assert list(told) == [component.elem_id for component in form.inputs]
    for path, component in form.components.items():
        fact, shown = told[component.elem_id], component.value
        assert fact["path"] == path
        if isinstance(component, gr.Number):
            assert float(fact["base"]) == shown, path
        else:
            assert fact["base"] == (str(shown).lower() if isinstance(shown, bool) else str(shown)), path
    assert [path for path, one in zip(form.components, told.values(), strict=True) if one.get("first")] == [
        "network.kind", "dataset.folder", "dataset.trigger_word", "output.name"
    ]  # fmt: skip
    decay = told["trainer_optimizer_ema_decay"]["when"]
    assert [one["told"] for one in decay][-1] == "where “EMA” is on"
    assert told["trainer_augment_count"]["when"][0]["told"] == (
        "where “Random crops” is on or where “Colour jitter” is set or where “Black and white” is set"
    )


def test_sections_of_advanced_options_alone_stand_last_without_a_fold_in_them() -> None:
    _, blocks = make()
    ids = [str(block.elem_id) for block in blocks.blocks.values() if isinstance(block, gr.Accordion)]
    sections = [name.removeprefix("trainer_section_") for name in ids if "_section_" in name]
    more = {name.removeprefix("trainer_more_") for name in ids if "_more_" in name}
    first = {
        path.partition(".")[0]
        for path, spec in field_specs().items()
        if not (spec.advanced or spec.first or spec.headless)
    }
    plain = [name for name in sections if name in first]
    assert sections[: len(plain)] == plain and more <= set(plain)
    assert {"model", "noise", "loss", "blocks"} <= set(sections) - set(plain)


def test_what_is_put_over_a_form_says_what_it_was_asked_over() -> None:
    form, _ = make()
    raw = through_gradio(form, from_values(SAMPLE))
    told = dict(
        zip(form.components, json.loads(form.over({"network.alpha": 16.0, "preview.sampler": ""}, raw)), strict=True)
    )
    assert {path: one for path, one in told.items() if one is not None} == {
        "network.alpha": [16.0, [0.5]], "preview.sampler": [HOST_DEFAULT, ["Euler"]]
    }  # fmt: skip
