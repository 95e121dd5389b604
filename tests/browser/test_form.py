"""The form in a real browser: folds, the box that finds an option, marks of what is changed, the model's own size."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lib_trainer.families.known import SDXL
from tests.browser import test_page as pages
from tests.browser.chromium import MARKS, Tab
from tests.browser.test_page import Page, Site, expect

pytestmark = MARKS
site = pages.site
page = pages.page
FIND = ".trainer-find"


def line(page: Page, name: str) -> Any:
    """A fold's."""
    return page.find(name).locator("> .label-wrap")


def test_changed_values_are_marked_and_put_back_each_and_all(page: Page) -> None:
    back = page.find("finder").locator(".trainer-back-all")
    expect(back).to_be_hidden()
    page.field("optimizer_text_encoder_lr").fill("1")
    rate = page.find("optimizer_text_encoder_lr").locator(".trainer-back")
    expect(rate).to_have_text("↺ 0.00001")
    rate.click()
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
    page.find("finder").locator(".trainer-undo").click()
    expect(back).to_have_text("Put back 4 changed")
    expect(page.field("captions_prefix")).to_have_value("photo of")
    expect(page.field("training_precision")).to_have_value("bf16")


def test_what_is_switched_on_and_off_again_at_once_shows_nothing(page: Page, tab: Tab) -> None:
    """gradio drops an event of a component whose last one is not answered yet."""
    page.field("optimizer_ema")
    tab.delay_answers(300)
    page.raw.evaluate("() => [1, 2].forEach(() => document.querySelector('#trainer_optimizer_ema input').click())")
    page.raw.wait_for_function("!trainerBridge.isBusy('trainer', 'visible')")
    expect(page.find("optimizer_ema_decay")).to_be_hidden()
    page.raw.evaluate("() => [1, 2, 3].forEach(() => document.querySelector('#trainer_optimizer_ema input').click())")
    expect(page.find("optimizer_ema_decay")).to_be_visible()


def test_the_size_is_the_models_unless_changed(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = site.runner.host
    expect(page.field("dataset_width")).to_have_value("512")
    monkeypatch.setattr(host, "family", lambda: SDXL)
    expect(page.field("dataset_width")).to_have_value("1024")
    expect(page.field("dataset_height")).to_have_value("1024")
    expect(page.find("finder").locator(".trainer-back-all")).to_be_hidden()
    page.fill_job(site, 20)
    page.field("dataset_width").fill("768")
    expect(page.find("dataset_width").locator(".trainer-back")).to_have_text("↺ 1024")
    monkeypatch.undo()
    expect(page.find("dataset_width").locator(".trainer-back")).to_have_text("↺ 512")
    expect(page.field("dataset_width")).to_have_value("768")
    expect(page.field("dataset_height")).to_have_value("1024")


def test_what_the_model_does_not_read_is_hidden_with_its_section(
    page: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host: Any = site.runner.host
    section = page.find("section_inpainting")
    expect(section).to_be_hidden()
    monkeypatch.setattr(host, "inpaints", lambda: True)
    expect(section).to_be_visible()
    page.field("inpainting_count").fill("8")
    monkeypatch.undo()
    monkeypatch.setattr(host, "family", lambda: SDXL)
    expect(page.field("dataset_second_captions")).to_be_visible()
    expect(page.find("inpainting_count")).to_be_visible()
    page.find("inpainting_count").locator(".trainer-back").click()
    expect(section).to_be_hidden()


def test_a_reloaded_page_follows_the_model_too(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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
