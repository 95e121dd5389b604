"""The tab Train while nothing runs: one page for all of these tests, in an order in which none harms the next."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from lib_trainer.training.desk import TrainingDesk
from tests.browser.chromium import MARKS, Tab, later, served
from tests.browser.test_form import FIND, line
from tests.browser.test_page import Page, expect
from tests.ui.fakes import FakeGenerator, FakeHost

pytestmark = MARKS
PREDICT = ("/run/predict", "/api/predict")


@pytest.fixture(scope="module")
def page(tab: Tab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    from lib_trainer.ui.standalone import build_app

    app = build_app(TrainingDesk(FakeHost(tmp_path_factory.mktemp("at rest"))), FakeGenerator())
    with served(tab, app) as address:
        page = Page(tab.open(address, 1280, 900))
        page.sees(".trainer-host", "SD 1.x")
        yield page


def test_what_everybody_sets_stands_first_and_the_rest_is_folded(page: Page) -> None:
    first = page.raw.locator("#trainer_first .trainer-field")
    assert [one.get_attribute("id") for one in first.all()] == [
        "trainer_network_kind", "trainer_dataset_folder", "trainer_dataset_trigger_word", "trainer_output_name",
    ]  # fmt: skip
    expect(page.raw.locator("#trainer_form .trainer-fold .trainer-field:visible")).to_have_count(0)
    assert page.find("form").evaluate("(form) => form.offsetHeight") < 1500


def test_a_fold_is_opened_by_key(page: Page) -> None:
    fold = line(page, "section_training")
    expect(fold).to_have_attribute("aria-expanded", "false")
    page.raw.locator(FIND).focus()
    for _ in range(20):
        page.raw.keyboard.press("Tab")
        if fold.evaluate("(line) => line === document.activeElement"):
            break
    page.raw.keyboard.press("Enter")
    expect(fold).to_have_attribute("aria-expanded", "true")
    expect(page.find("training_epochs")).to_be_visible()
    page.raw.keyboard.press("Space")
    expect(page.find("training_epochs")).to_be_hidden()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gradient clip", ["optimizer_max_gradient_norm"]),  # its label
        ("max_gradient_norm", ["optimizer_max_gradient_norm"]),  # its name
        ("turns clipping off", ["optimizer_max_gradient_norm"]),  # its help
        ("REX", ["optimizer_schedule"]),  # a choice
        ("no such thing", []),
    ],
)
def test_an_option_is_found_and_seen(page: Page, text: str, found: list[str]) -> None:
    page.raw.locator(FIND).fill(text)
    expect(page.raw.locator(".trainer-found")).to_contain_text("1 option" if found else "No options")
    expect(page.raw.locator("#trainer_form .trainer-fold .trainer-field:visible")).to_have_count(len(found))
    for name in found:
        expect(page.find(name)).to_have_class(re.compile("trainer-match"))
        expect(page.find(name)).to_be_visible()
    page.raw.locator(FIND).press("Escape")
    expect(page.raw.locator("#trainer_form .trainer-fold .trainer-field:visible")).to_have_count(0)
    expect(line(page, "section_loss")).to_be_visible()


def test_the_page_polls_while_it_is_looked_at_and_rarely_while_nothing_runs(page: Page, tab: Tab) -> None:
    def asked() -> int:
        return sum(url.endswith(PREDICT) for url in tab.requests)

    def settled() -> int:
        """How often was asked, when all is answered."""
        while True:
            before = asked()
            page.raw.wait_for_timeout(500)
            if before == asked() == sum(url.endswith(PREDICT) for url in tab.answers):
                return before

    page.raw.locator(".tab-nav button", has_text="Generate").click()
    expect(page.raw.locator("#generate_prompt")).to_be_visible()
    before = settled()
    for _ in range(8):
        later(page.raw, 800)
    assert asked() == before, "a page that is not seen asks for nothing"
    with page.raw.expect_response(re.compile("/(run|api)/predict$")):
        page.raw.locator(".tab-nav button", has_text="Train").click()
    for _ in range(8):
        later(page.raw, 800)
        page.raw.wait_for_function("!trainerBridge.isBusy('trainer', 'poll')")
    assert 2 <= asked() - before <= 4, "two are due; a busy machine has one repeated; a page that works asks nine times"


def test_what_was_found_and_typed_into_stays_open(page: Page) -> None:
    page.raw.locator(FIND).fill("gradient clip")
    page.raw.locator(FIND).press("Enter")
    page.raw.keyboard.press("Control+A")
    page.raw.keyboard.type("2")
    page.raw.locator(FIND).fill("")
    expect(page.find("optimizer_max_gradient_norm")).to_be_visible()
    expect(page.find("optimizer_unet_lr")).to_be_visible()
    expect(page.find("network_rank")).to_be_hidden()


def test_an_option_without_effect_is_told_with_what_gives_it_one(page: Page) -> None:
    page.raw.locator(FIND).fill("ema decay")
    expect(page.raw.locator(".trainer-found")).to_contain_text("No options")
    expect(page.raw.locator(".trainer-found li")).to_have_text(re.compile("^EMA decay where “EMA” is on"))
    page.raw.locator(".trainer-found button").click()
    expect(page.raw.locator(FIND)).to_have_value("")
    expect(page.find("optimizer_ema").locator("input")).to_be_focused()
    page.raw.keyboard.press("Space")
    expect(page.find("optimizer_ema_decay")).to_be_visible()


def test_learning_rates_are_shown_legibly(page: Page) -> None:
    expect(page.field("optimizer_unet_lr")).to_have_value("0.0001")
    expect(page.field("optimizer_text_encoder_lr")).to_have_value(re.compile(r"^(0\.00001|1e-5)$"))


def test_a_switch_that_decides_on_one_option_hides_it(page: Page) -> None:
    page.open_all()
    expect(page.find("network_max_norm")).to_be_visible()
    page.field("network_dora").click()
    expect(page.find("network_max_norm")).to_be_hidden()


def test_the_kind_of_training_decides_what_is_shown(page: Page) -> None:
    page.open_all()
    rank, layers = page.raw.locator("#trainer_network_rank"), page.raw.locator("#trainer_hypernetwork_layer_structure")
    expect(rank).to_be_visible()
    expect(layers).to_be_hidden()
    page.raw.click("#trainer_network_kind input")
    page.raw.locator("#trainer_network_kind ul.options li", has_text="Hypernetwork").first.click()
    expect(layers).to_be_visible()
    expect(rank).to_be_hidden()
    expect(page.raw.locator("#trainer_section_prior")).to_be_hidden()
    expect(page.raw.locator("#trainer_section_dataset")).to_be_visible()


@pytest.mark.parametrize("width", [1600, 1024, 420])
def test_nothing_overflows(page: Page, width: int) -> None:
    page.raw.set_viewport_size({"width": width, "height": 900})
    page.open_all()
    assert page.raw.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    outside = page.raw.evaluate(
        """() => [...document.querySelectorAll('.trainer-field')].filter(field => field.offsetParent).filter(field => {
            const inner = field.getBoundingClientRect();
            const outer = field.closest('.trainer-section').getBoundingClientRect();
            return inner.left < outer.left - 1 || inner.right > outer.right + 1;
        }).map(field => field.id)"""
    )
    assert outside == []


def test_the_hosts_bar_and_ours_show_one_estimate(page: Page) -> None:
    shown = page.raw.evaluate(
        """async () => {
            const panel = document.querySelector('.trainer-status');
            panel.dataset.task = 'task(b)';
            panel.dataset.eta = '1:15';
            const told = [];
            window.requestProgress = (id, anchor, gallery, end, progress) => {
                const bar = document.createElement('div');
                bar.className = 'progressDiv';
                bar.innerHTML = '<div class="progress"></div>';
                anchor.parentNode.insertBefore(bar, anchor);
                for (const eta of ['1:15', '–']) {
                    panel.dataset.eta = eta;
                    bar.firstChild.textContent = 'Training 20% ETA: 01:48';
                    document.title = '[20% ETA: 01:48] page';
                    progress({});
                    told.push(bar.firstChild.textContent, document.title);
                }
                bar.remove();
            };
            await new Promise((done) => setTimeout(done, 800));
            return told;
        }"""
    )
    assert shown == ["Training 20% ETA: 1:15", "[20% ETA: 1:15] page", "Training 20%", "[20%] page"]


def test_the_hosts_own_progress_bar_is_asked_for_once_per_task(page: Page) -> None:
    page.raw.evaluate(
        """() => {
            window.asked = [];
            window.requestProgress = (id, anchor, gallery) => window.asked.push([id, anchor.className, gallery]);
            document.querySelector('.trainer-status').dataset.task = 'task(a)';
        }"""
    )
    page.raw.wait_for_function("window.asked.length > 0")
    page.raw.wait_for_timeout(700)
    assert page.raw.evaluate("window.asked") == [["task(a)", "trainer-anchor", None]]


def test_what_is_polled_neither_flickers_nor_jumps(page: Page) -> None:
    """gradio marks a box that waits for an answer, pales it to a fifth, and makes it at least 96 pixels tall."""
    box = page.find("status").locator("div").first
    box.evaluate("(one) => { one.classList.add('min', 'svelte-1ybaih5', 'svelte-1yrv54'); }")
    assert box.evaluate("(one) => getComputedStyle(one).minHeight") == "0px"
    box.evaluate("(one) => { one.style.transition = 'none'; one.className = 'prose pending svelte-1ed2p3z'; }")
    assert box.evaluate("(one) => getComputedStyle(one).opacity") == "1"
