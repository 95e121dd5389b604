"""The page in the real WebUI, in a real browser, from bad input to a picture drawn with the LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui.server import PROMPT, Picture, Webui, wait_until_ended

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for path in (Path("/usr/bin/chromium"), Path("/usr/bin/chromium-browser")) if path.exists()), None
)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)"),
]
expect = playwright.expect
SLOW = 60_000
"""Milliseconds: two busy cores run the WebUI, the training and the browser."""
NAME = "of_the_page"


class Page:
    """The WebUI in a browser. `shots` is where screenshots go."""

    def __init__(self, raw: Any, webui: Webui, shots: Path) -> None:
        self.raw, self.webui, self.shots = raw, webui, shots
        raw.set_default_timeout(SLOW)

    def open(self) -> None:
        self.raw.goto(self.webui.address, wait_until="domcontentloaded")
        self.raw.wait_for_selector("#txt2img_generate")

    def tab(self, label: str, bar: str = "tabs") -> None:
        self.raw.locator(f"#{bar} > .tab-nav > button").filter(has_text=re.compile(rf"^\s*{label}\s*$")).click()

    def open_trainer(self) -> None:
        self.tab("Train")
        self.tab("LoRA & more", "train_tabs")
        self.sees(".trainer-host", "mini-sd1")

    def find(self, name: str) -> Any:
        return self.raw.locator(f"#trainer_{name}").first

    def fill(self, field: str, value: object) -> None:
        self.raw.wait_for_function("window.trainerForm")
        self.raw.evaluate("(id) => trainerForm.reveal(document.getElementById(id))", f"trainer_{field}")
        self.find(field).locator("textarea, input").first.fill(str(value))

    def set_option(self, field: str, value: object) -> None:
        box = self.raw.locator(f"#{field} textarea, #{field} input[type=number]").first
        box.fill(str(value))
        box.press("Tab")

    def generate(self, prompt: str) -> None:
        """Fill in the WebUI's own txt2img tab and press its button."""
        self.set_option("txt2img_prompt", prompt)
        for field, value in {"width": 64, "height": 64, "steps": 4, "seed": 7}.items():
            self.set_option(f"txt2img_{field}", value)
        self.raw.locator("#txt2img_generate").click()

    def sees(self, selector: str, text: str | re.Pattern[str] = "") -> None:
        expect(self.raw.locator(selector).first).to_contain_text(text, timeout=SLOW)

    def shot(self, name: str) -> None:
        self.raw.screenshot(path=self.shots / f"{name}.png", full_page=True)

    def drawn(self) -> Picture:
        """The picture in txt2img's gallery, as the WebUI keeps it."""
        source = self.raw.locator("#txt2img_gallery img").first
        expect(source).to_be_visible(timeout=SLOW)
        answer = self.raw.request.get(source.get_attribute("src"))
        with Image.open(BytesIO(answer.body())) as image:
            return np.asarray(image.convert("RGB"))


@pytest.fixture
def page(webui: Webui, unharmed: None, tmp_path: Path) -> Iterator[Page]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        raw = chromium.new_page(viewport={"width": 1400, "height": 1100})
        raw.route("**/*", _only_local)
        page = Page(raw, webui, tmp_path)
        try:
            page.open()
            yield page
        finally:
            page.shot("last")
            chromium.close()
            webui.probe("command", name="stop")
            wait_until_ended(webui)


def _only_local(route: Any) -> None:
    local = route.request.url.startswith(("http://127.0.0.1", "data:", "blob:"))
    route.continue_() if local else route.abort()


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
