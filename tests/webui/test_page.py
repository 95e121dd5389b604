"""The page in the real WebUI, in a real browser, from bad input to a picture drawn with the LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser.chromium import MARKS
from tests.webui.page import SLOW, Page, expect, opened
from tests.webui.server import PROMPT, Webui

pytestmark = MARKS
NAME = "of_the_page"


@pytest.fixture
def page(webui: Webui, unharmed: None, stopped: None, tmp_path: Path) -> Iterator[Page]:
    with opened(Page, webui, tmp_path) as page:
        yield page


def test_from_bad_input_to_a_picture(page: Page, webui: Webui, pictures: Path) -> None:
    page.open_trainer()
    refused_then_started(page, pictures)
    watched(page)
    queue_a_picture(page)
    found_again_saved_and_stopped(page, webui)
    used(page, webui)


def refused_then_started(page: Page, pictures: Path) -> None:
    page.fill("output_name", "")
    page.find("start").click()
    page.sees(".trainer-notice-error", "Name of the result is empty: give the result a name.")
    page.shot("1-bad-input")
    fields = {
        "dataset_folder": pictures, "dataset_trigger_word": "zork", "dataset_width": 64, "dataset_height": 64,
        "optimizer_unet_lr": 0.002, "training_max_steps": 2000, "output_name": NAME, "preview_prompt": PROMPT,
        "preview_every": 5,
    }  # fmt: skip
    for field, value in fields.items():
        page.fill(field, value)
    page.find("start").click()


def watched(page: Page) -> None:
    page.sees(".trainer-state-running", re.compile(r"\d+ / 2,000"))
    page.sees(".trainer-facts", re.compile(r"Time left\s*\d+:\d\d"))
    page.sees(".trainer-facts", re.compile(r"Speed\s*[\d.]+ (steps/s|s/step)"))
    lines = page.raw.locator("#trainer_chart polyline.trainer-smoothed")
    expect(lines).to_have_count(1, timeout=SLOW)
    expect(page.raw.locator("#trainer_gallery img").first).to_be_visible(timeout=SLOW)
    expect(page.raw.locator("#trainer_native .progressDiv")).to_be_visible(timeout=SLOW)
    page.shot("2-running")


def queue_a_picture(page: Page) -> None:
    page.tab("txt2img")
    page.generate(PROMPT)
    page.sees("#txt2img_results .progressDiv", "In queue: 1/1")
    page.shot("3-queued")


def found_again_saved_and_stopped(page: Page, webui: Webui) -> None:
    page.open()
    page.open_trainer()
    page.sees(".trainer-state-running", NAME)
    expect(page.find("output_name").locator("textarea, input").first).to_have_value(NAME)
    page.find("save").click()
    page.sees(".trainer-output", re.compile(rf"{NAME}-step\d{{8}}\.safetensors"))
    page.find("stop").click()
    page.sees(".trainer-state-stopped", f"{NAME}.safetensors")
    expect(page.raw.locator(".trainer-notice-active")).to_have_count(0, timeout=SLOW)
    page.shot("4-stopped")
    webui.until(lambda: webui.get("/internal/pending-tasks")["size"] == 0, "the end of the queued picture")


def used(page: Page, webui: Webui) -> None:
    page.find("use").click()
    prompt = page.raw.locator("#txt2img_prompt textarea")
    expect(prompt).to_be_visible(timeout=SLOW)
    expect(prompt).to_have_value(f"zork <lora:{NAME}:1>")
    card_shows_the_run(page)
    prompt.fill("")
    page.raw.locator(f'#txt2img_lora_cards .card[data-name="{NAME}"]').click()
    expect(prompt).to_have_value(re.compile(rf"^\s*<lora:{NAME}:1> zork\s*$"), timeout=SLOW)
    page.tab("Generation", "txt2img_extra_tabs")
    page.generate(f"{PROMPT} <lora:{NAME}:1>")
    drawn = page.drawn()
    page.shot("6-drawn")
    options = {"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}
    assert np.array_equal(drawn, webui.txt2img(f"{PROMPT} <lora:{NAME}:1>", **options))
    assert not np.array_equal(drawn, webui.txt2img(PROMPT, **options))


def card_shows_the_run(page: Page) -> None:
    """In the extra networks' tab, after its Refresh button."""
    page.tab("Lora", "txt2img_extra_tabs")
    page.raw.locator("#txt2img_lora_extra_refresh:visible").first.click()
    card = page.raw.locator(f'#txt2img_lora_cards .card[data-name="{NAME}"]')
    expect(card).to_be_visible(timeout=SLOW)
    expect(card.locator("img.preview")).to_be_visible(timeout=SLOW)
    page.shot("5-card")
    card.hover()
    card.locator(".metadata-button").click()
    page.sees(".global-popup-inner", "ss_network_module")
    page.sees(".global-popup-inner", "mini-sd1")
    page.raw.keyboard.press("Escape")
    expect(page.raw.locator(".global-popup-inner").first).to_be_hidden(timeout=SLOW)
