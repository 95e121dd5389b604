"""The form in a real browser: folds, the box that finds an option, marks of what is changed, the model's own size."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lib_trainer.families.known import SDXL
from tests.browser import test_page as pages
from tests.browser.chromium import MARKS
from tests.browser.test_page import Page, Site, expect, open_page

pytestmark = MARKS
site = pages.site
page = pages.page
FIND = ".trainer-find"


def line(page: Page, name: str) -> Any:
    """A fold's."""
    return page.find(name).locator("> .label-wrap")


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


def test_changed_values_are_marked_and_put_back_each_and_all(page: Page) -> None:
    back = page.raw.locator(".trainer-back-all")
    expect(back).to_be_hidden()
    page.field("output_name").fill("cat")
    page.field("network_rank").fill("64")
    page.field("optimizer_unet_lr").fill("2e-4")
    page.field("network_dora").click()
    page.field("captions_prefix").fill("photo of")
    page.field("training_precision").click()
    page.raw.locator("#trainer_training_precision ul.options li", has_text="bf16").click()
    expect(back).to_have_text("Put back 5 changed")
    expect(line(page, "section_network").locator(".trainer-summary")).to_have_text("Rank (dim) 64 · DoRA")
    expect(page.find("output_name")).not_to_have_class(re.compile("trainer-changed"))
    page.find("network_rank").locator(".trainer-back").click()
    expect(page.field("network_rank")).to_have_value("32")
    expect(back).to_have_text("Put back 4 changed")
    back.click()
    expect(back).to_be_hidden()
    expect(page.field("optimizer_unet_lr")).to_have_value("0.0001")
    expect(page.field("network_dora")).not_to_be_checked()
    expect(page.field("captions_prefix")).to_have_value("")
    expect(page.field("training_precision")).to_have_value("auto")
    expect(page.field("output_name")).to_have_value("cat")
    page.raw.locator(".trainer-undo").click()
    expect(back).to_have_text("Put back 4 changed")
    expect(page.field("captions_prefix")).to_have_value("photo of")
    expect(page.field("training_precision")).to_have_value("bf16")


def test_a_switch_that_decides_on_one_option_hides_it(page: Page) -> None:
    page.open_all()
    expect(page.find("network_max_norm")).to_be_visible()
    page.field("network_dora").click()
    expect(page.find("network_max_norm")).to_be_hidden()


def test_the_size_is_the_models_unless_changed(browser: Any, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = site.runner.host
    page = open_page(browser, site)
    expect(page.field("dataset_width")).to_have_value("512")
    monkeypatch.setattr(host, "family", lambda: SDXL)
    expect(page.field("dataset_width")).to_have_value("1024")
    expect(page.field("dataset_height")).to_have_value("1024")
    expect(page.raw.locator(".trainer-back-all")).to_be_hidden()
    page.fill_job(site, 20)
    page.field("dataset_width").fill("768")
    expect(page.find("dataset_width").locator(".trainer-back")).to_have_text("↺ 1024")
    monkeypatch.undo()
    expect(page.find("dataset_width").locator(".trainer-back")).to_have_text("↺ 512")
    expect(page.field("dataset_width")).to_have_value("768")
    expect(page.field("dataset_height")).to_have_value("1024")
    page.raw.context.close()


def test_a_reloaded_page_follows_the_model_too(browser: Any, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(browser, site)
    page.fill_job(site, 20)
    page.find("start").click()
    page.sees(".trainer-state-finished", "cat.safetensors")
    monkeypatch.setattr(site.runner.host, "family", lambda: SDXL)
    page.raw.reload()
    expect(page.field("output_name")).to_have_value("cat")
    expect(page.field("dataset_width")).to_have_value("1024")
    page.field("dataset_width").fill("512")
    page.field("dataset_height").fill("512")
    page.field("output_name").fill("dog")
    page.find("start").click()
    page.sees(".trainer-state-finished", "dog.safetensors")
    page.raw.reload()
    expect(page.field("output_name")).to_have_value("dog")
    expect(page.field("dataset_width")).to_have_value("512")
    page.raw.context.close()
