"""The bridge alone, in a browser and without a server: requests in their order, lost and late answers, tabs by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import MARKS, Tab, later

pytestmark = MARKS
BRIDGE = Path(__file__).parents[2] / "javascript" / "bridge.js"
PAGE = """
<button id="p_look"></button><button id="p_judge"></button><button id="p_poll"></button>
<div class="watched" data-prefix="p" data-active="1">a panel</div>
<div class="tabs"><div class="tab-nav"><button>标签一</button><button>标签二</button></div>
<div id="tab_one" class="tabitem"></div><div id="tab_two" class="tabitem"></div></div>
<label id="box"><textarea></textarea></label>
"""
SERVER = """() => {
    window.asked = [];
    window.log = [];
    const bridge = window.trainerBridge;
    document.querySelectorAll('button[id^=p_]').forEach((button) => button.addEventListener('click', () => {
        const name = button.id.slice(2);
        const [text, ...rest] = bridge.taken('p', name, ['', 'input', 'an output'], 2);
        window.asked.push({name, rest, ...JSON.parse(text)});
    }));
    window.answer = (n) => bridge.answered('p', window.asked[n].name, window.asked[n].nonce);
}"""


@pytest.fixture
def page(tab: Tab) -> Iterator[Any]:
    page = tab.open("about:blank", 1280, 900)
    page.set_content(PAGE)
    page.add_script_tag(content=BRIDGE.read_text("utf-8"))
    page.add_script_tag(content=BRIDGE.read_text("utf-8"))  # a reloaded page may run it again
    page.evaluate(SERVER)
    yield page
    assert tab.leave() == []


def asked(page: Any) -> list[tuple[str, Any]]:
    return [(one["name"], one.get("n")) for one in page.evaluate("window.asked")]


def test_requests_of_a_line_wait_for_each_other_and_bring_their_numbers(page: Any) -> None:
    page.evaluate("for (const n of [1, 2, 3]) trainerBridge.ask('p', n === 2 ? 'judge' : 'look', {n})")
    assert asked(page) == [("look", 1)]
    assert page.evaluate("window.asked[0].rest") == ["input"], "what gradio adds of the outputs is not sent"
    page.evaluate("window.answer(0)")
    assert asked(page) == [("look", 1), ("judge", 2)]
    page.evaluate("window.answer(1)")
    first, second, third = page.evaluate("window.asked")
    assert len({one["nonce"] for one in (first, second, third)}) == 3
    assert (first["heard"], second["heard"], third["heard"]) == ("", first["nonce"], second["nonce"])


def test_of_those_that_wait_only_the_latest_of_its_sort_is_sent(page: Any) -> None:
    page.evaluate("for (const n of [1, 2, 3]) trainerBridge.ask('p', 'look', {n}, {latest: 'look'})")
    page.evaluate("trainerBridge.ask('p', 'judge', {n: 4})")
    page.evaluate("window.answer(0); window.answer(1)")
    assert asked(page) == [("look", 1), ("look", 3), ("judge", 4)]


def test_another_line_does_not_wait(page: Any) -> None:
    page.evaluate("trainerBridge.ask('p', 'look', {n: 1}); trainerBridge.ask('p', 'poll', {n: 2}, {line: 'poll'})")
    assert asked(page) == [("look", 1), ("poll", 2)]
    assert page.evaluate("trainerBridge.isBusy('p') && trainerBridge.isBusy('p', 'poll')")


def test_a_late_answer_is_not_taken_for_the_next_ones(page: Any) -> None:
    page.evaluate(
        """trainerBridge.ask('p', 'look', {n: 1}, {patience: 100, done: () => log.push('1 done'),
            lost: () => log.push('1 lost')});
        trainerBridge.ask('p', 'look', {n: 2}, {done: () => log.push('2 done')});"""
    )
    page.wait_for_function("window.asked.length === 2")
    page.evaluate("window.answer(0)")
    assert page.evaluate("window.log") == ["1 lost"] and page.evaluate("trainerBridge.isBusy('p')")
    page.evaluate("window.answer(1)")
    assert page.evaluate("window.log") == ["1 lost", "2 done"] and not page.evaluate("trainerBridge.isBusy('p')")


def test_a_press_that_nobody_heard_is_repeated(page: Any) -> None:
    page.evaluate(
        """() => {
            const button = document.getElementById('p_look');
            window.deaf = button.cloneNode(); // as before gradio listens
            button.replaceWith(window.deaf);
            trainerBridge.ask('p', 'look', {n: 1});
            setTimeout(() => window.deaf.replaceWith(button), 300);
        }"""
    )
    page.wait_for_function("window.asked.length === 1")
    page.evaluate("window.answer(0)")
    assert not page.evaluate("trainerBridge.isBusy('p')")
    later(page, 1500)
    assert asked(page) == [("look", 1)], "and no more"


def test_a_panel_that_is_seen_is_polled_and_the_next_poll_waits_for_the_answer(page: Any) -> None:
    page.evaluate(
        """trainerBridge.watch({panel: '.watched', isActive: (one) => one.dataset.active === '1',
            polled: (prefix) => log.push(prefix)})"""
    )
    page.wait_for_function("window.asked.length === 1")
    later(page, 1200)
    assert asked(page) == [("poll", None)]
    page.evaluate("window.answer(0)")
    assert page.evaluate("window.log") == ["p"]
    page.wait_for_function("window.asked.length === 2")
    page.evaluate("document.querySelector('.watched').hidden = true; window.answer(1)")
    later(page, 1200)
    assert len(asked(page)) == 2, "nobody looks"


def test_a_tab_is_found_by_its_id_whatever_it_is_called(page: Any) -> None:
    bar = page.locator(".tab-nav button")
    bar.evaluate_all("(all) => all.forEach((one, n) => { one.onclick = () => log.push(n); })")
    assert page.evaluate("trainerBridge.openTab('tab_two') && trainerBridge.openTab('tab_one')")
    assert page.evaluate("window.log") == [1, 0]
    assert page.evaluate("trainerBridge.openTab('tab_three')") is False
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<button id=tab_two-button></button>')")
    page.evaluate("() => { document.getElementById('tab_two-button').onclick = () => log.push('named'); }")
    page.evaluate("trainerBridge.openTab('tab_two')")
    assert page.evaluate("window.log") == [1, 0, "named"], "from gradio 4 on the button has a name"


def test_a_text_is_put_into_a_box_once(page: Any) -> None:
    for text in ("zorb", "<lora:zorb:1>", "<lora:ink:1> a cat", "a cat <lora:oil:1>") * 2:
        page.evaluate("(text) => trainerBridge.insert('box', text)", text)
    assert page.locator("#box textarea").input_value() == ("zorb <lora:zorb:1>, <lora:ink:1> a cat, a cat <lora:oil:1>")


@pytest.mark.parametrize(
    ("there", "word", "then"),
    [
        ("a zorbing dog", "zorb", "a zorbing dog, zorb"),
        ("zorb_2", "zorb", "zorb_2, zorb"),
        ("a dog,(zorb:1.2)", "zorb", "a dog,(zorb:1.2)"),
        ("x, c++ (1) {a|b}", "c++ (1) {a|b}", "x, c++ (1) {a|b}"),
    ],
)
def test_a_word_is_missing_where_it_is_a_part_of_another(page: Any, there: str, word: str, then: str) -> None:
    page.locator("#box textarea").fill(there)
    page.evaluate("(text) => trainerBridge.insert('box', text)", word)
    assert page.locator("#box textarea").input_value() == then


@pytest.mark.parametrize(
    ("there", "then"),
    [
        ("zorb <lora:zorb:0.7>", "zorb <lora:zorb:0.7>"),
        ("<lora:zorb:te=0.5:unet=0.7> a dog", "<lora:zorb:te=0.5:unet=0.7> a dog, zorb"),
        ("zorb <lora:zorb>", "zorb <lora:zorb>"),
        ("zorb <lora:zorb-2:1> <hypernet:zorb:1>", "zorb <lora:zorb-2:1> <hypernet:zorb:1> <lora:zorb:1>"),
    ],
)
def test_a_file_that_is_called_with_another_weight_keeps_it(page: Any, there: str, then: str) -> None:
    page.locator("#box textarea").fill(there)
    page.evaluate("['zorb', '<lora:zorb:1>'].forEach((text) => trainerBridge.insert('box', text))")
    assert page.locator("#box textarea").input_value() == then
