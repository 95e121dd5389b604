"""Sliders of block weights in a browser and without a server: a drawing that is made anew while one is dragged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.families.known import SD1
from lib_trainer.ui.models.view import blocks_html
from tests.browser.chromium import MARKS, Tab

pytestmark = MARKS
SCRIPTS = Path(__file__).parents[2] / "javascript"
FIELD = "models_merge_blocks"
PAGE = f"""
<div id="models_page" class="models-page"><div class="models-job" data-prefix="models" data-active="0"></div>
<div id="models_tool_merge"><label id="{FIELD}"><input></label><div id="drawing"></div></div>
<button id="{FIELD}_draw" onclick="answer()"></button></div>
"""
ANSWER = """() => {
    window.asked = 0;
    window.answer = () => {
        const [text] = trainerBridge.taken('models', 'merge_blocks_draw', [''], 1);
        window.asked += 1;
        trainerBridge.answered('models', 'merge_blocks_draw', JSON.parse(text).nonce);
    };
}"""
SHOW = """(html) => {
    const place = document.getElementById('drawing');
    const then = modelsPage.drawn('models_merge_blocks', html, 'as it is');
    if (then !== 'as it is') place.innerHTML = then;
    return then === 'as it is';
}"""


def drawing(weight: float) -> str:
    return blocks_html(FIELD, SD1.unet, {}, weight, [])


@pytest.fixture
def page(tab: Tab) -> Iterator[Any]:
    page = tab.open("about:blank", 1280, 900)
    page.set_content(PAGE)
    page.evaluate(ANSWER)
    for name in ("bridge", "models"):
        page.add_script_tag(content=(SCRIPTS / f"{name}.js").read_text("utf-8"))
    page.evaluate(SHOW, drawing(0.5))
    page.locator("summary").click()
    page.wait_for_function("asked === 1")  # as it is when it is opened
    yield page
    assert tab.leave() == []


def drag(page: Any) -> None:
    """To one end, with the button still down."""
    box = page.get_by_label("IN03").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], middle[1], steps=3)


def written(page: Any) -> list[float]:
    text = page.locator(f"#{FIELD} input").input_value()
    return json.loads(f"[{text}]")


def test_a_drawing_that_is_opened_at_once_stays_open(page: Any) -> None:
    """Before the page has looked at it."""
    page.locator("summary").click()
    page.evaluate(SHOW, drawing(0.25))
    page.wait_for_function("document.querySelector('.models-blocks').dataset.known")
    page.evaluate(f"html => {{ ({SHOW})(html); document.querySelector('summary').click(); }}", drawing(0.75))
    page.wait_for_function("document.querySelector('.models-blocks').dataset.known")
    assert page.locator(".models-blocks").evaluate("panel => panel.open")
    page.wait_for_function("asked === 2")


def test_a_drag_is_written_when_it_ends(page: Any) -> None:
    drag(page)
    assert written(page) == []
    page.mouse.up()
    assert sorted(written(page)) == [0.5] * 25 + [1]


def test_a_drag_goes_on_in_a_drawing_that_is_made_anew(page: Any) -> None:
    drag(page)
    assert page.evaluate(SHOW, drawing(0.3)), "the slider under the pointer stays"
    page.mouse.up()
    assert written(page) == [], "the old drawing's other blocks are not what the new one has"
    page.wait_for_function("asked === 2")
    assert not page.evaluate(SHOW, drawing(0.3))
    page.wait_for_function("document.querySelector('#models_merge_blocks input').value")
    assert sorted(written(page)) == [0.3] * 25 + [1] and page.get_by_label("IN03").input_value() == "1"
    assert page.locator("polyline").get_attribute("points").split()[4].endswith(",0")


def test_a_press_without_a_move_leaves_the_new_drawing(page: Any) -> None:
    box = page.get_by_label("IN03").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    assert page.evaluate(SHOW, drawing(0.3))
    page.mouse.up()
    page.wait_for_function("asked === 2")
    assert not page.evaluate(SHOW, drawing(0.3))
    assert written(page) == []
