"""The accordion "Tiled VAE" in the real WebUI, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import MARKS
from tests.webui.page import SLOW, Page, expect, opened
from tests.webui.server import PROMPT, Webui

pytestmark = MARKS
SCRIPT = "script_{tab}_tiled_vae_row_bands_{part}"


class Tiled(Page):
    def part(self, tab: str, name: str) -> Any:
        return self.raw.locator(f"#{SCRIPT.format(tab=tab, part=name)}")


@pytest.fixture
def page(webui: Webui, tmp_path: Path) -> Iterator[Tiled]:
    with opened(Tiled, webui, tmp_path, height=1300) as page:
        yield page


def test_open_choose_and_generate(page: Tiled, webui: Webui, tmp_path: Path) -> None:
    webui.probe("vae_api")
    webui.probe("vae_last")
    accordion = page.part("txt2img", "enabled")
    expect(accordion).to_contain_text("Tiled VAE")
    expect(page.part("txt2img", "mode")).to_be_hidden()
    accordion.locator(".label-wrap").click()
    mode = page.part("txt2img", "mode")
    expect(mode).to_be_visible()
    expect(mode.locator("input:checked")).to_have_value("Automatic")
    accordion.scroll_into_view_if_needed()
    accordion.screenshot(path=tmp_path / "accordion.png")
    mode.locator("label").filter(has_text="Always").click()
    page.generate(PROMPT)
    expect(page.raw.locator("#html_info_txt2img").first).to_contain_text("VAE bands: Always", timeout=SLOW)
    assert webui.probe("vae_last") == ["decoder"]
    page.shot("txt2img")


def test_img2img_has_it_too_and_pasting_sets_it(page: Tiled) -> None:
    text = f"{PROMPT}\nSteps: 4, Sampler: DDIM, VAE bands: Always, VAE bands budget: 2.5"
    page.raw.locator("#txt2img_prompt textarea").first.fill(text)
    page.raw.locator("#txt2img_tools #paste").first.click()
    mode = page.part("txt2img", "mode")
    expect(mode).to_be_visible()
    expect(mode.locator("input:checked")).to_have_value("Always")
    expect(page.part("txt2img", "budget").locator("input")).to_have_value("2.5")
    page.tab("img2img")
    expect(page.part("img2img", "enabled")).to_be_visible()
    expect(page.part("img2img", "mode")).to_be_hidden()


def test_a_budget_that_is_none_does_not_block_a_generation(page: Tiled) -> None:
    label = page.part("txt2img", "enabled").locator(".label-wrap")
    label.click()  # opened is on
    page.part("txt2img", "budget").locator("input").fill("-3")
    info = page.raw.locator("#html_info_txt2img").first
    page.generate(PROMPT)
    expect(info).to_contain_text("Steps: 4", timeout=SLOW)
    expect(page.raw.locator("#html_log_txt2img").first).to_contain_text("Memory budget")
    label.click()  # closed is off
    page.raw.locator("#txt2img_seed input").first.fill("8")
    page.raw.locator("#txt2img_generate").click()
    expect(info).to_contain_text("Seed: 8", timeout=SLOW)
    expect(page.raw.locator("#html_log_txt2img").first).not_to_contain_text("Memory budget")
