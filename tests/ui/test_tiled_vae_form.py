"""The accordion "Tiled VAE": what it reads, and that nothing in it can block the host's own button."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from lib_trainer.refusals import Reason
from lib_trainer.ui import tiled_vae as page
from lib_trainer.ui.tagger.extras import build_extras_step


def build() -> list[Any]:
    with gr.Blocks(analytics_enabled=False):
        components, _ = page.build(lambda value, label, elem_id: gr.Accordion(label), page.OFF, lambda name: name)
    return components


WRONG: list[Any] = [-3, 1e30, 0, None, "", "abc"]


@pytest.mark.parametrize("value", WRONG)
def test_no_field_of_ours_is_refused_by_gradio(value: Any) -> None:
    """gradio would answer the whole of txt2img with an error that names no field, and the page would go on waiting."""

    class Desk:
        def found(self) -> list[Any]:
            return []

    with gr.Blocks(analytics_enabled=False):
        extras = build_extras_step(Desk())  # type: ignore[arg-type]
    for component in [*build()[1:], *extras.values()]:
        if isinstance(component, gr.Number) and isinstance(value, str):
            continue  # a browser's number field sends none
        component.preprocess(value)
        bounds = (getattr(component, "minimum", None), getattr(component, "maximum", None))
        assert isinstance(component, gr.Slider) or bounds == (None, None), component.label


@pytest.mark.parametrize("value", [-3, float("nan"), float("inf"), "abc"])
def test_a_budget_that_is_none_is_said_only_where_it_is_on(value: Any) -> None:
    assert page.read([False, page.AUTOMATIC, value, False]) == page.Choice()
    assert page.read([{"enabled": False, "budget_gib": value}]) == page.Choice()
    with pytest.raises(Reason, match=r"Memory budget .* is not a size"):
        page.read([True, page.AUTOMATIC, value, False])


def test_what_is_read() -> None:
    assert page.read([True, page.ALWAYS, 2.5, True]) == page.Choice(True, page.ALWAYS, 2.5, True)
    assert page.read([True]) == page.Choice(True)
    assert page.read([{"mode": "always"}]) == page.Choice(True, page.ALWAYS)
    assert page.read([{"mode": "off"}]) == page.Choice() == page.read([])
    assert page.read([False, "Sometimes", 0, False]) == page.Choice()
    with pytest.raises(Reason, match="not known"):
        page.read([True, "Sometimes"])
    with pytest.raises(Reason, match="no argument 'tile'"):
        page.read([{"tile": 1}])
