"""The tab Models in the real WebUI, in a real browser: a merge is tried, put back, saved and loaded, and drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.server import PROMPT, Picture, Webui, take_pristine
from tests.webui.test_page import ARGUMENTS, CHROMIUM, SLOW, Page, _only_local

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)"),
]
expect = playwright.expect


class ModelsPage(Page):
    def part(self, name: str) -> Any:
        return self.raw.locator(f"#models_{name}").first

    def choose(self, name: str, value: str) -> None:
        """From the list."""
        self.part(name).locator("input").first.click()
        self.part(name).locator(".options li").filter(has_text=value).first.click()

    def write_in(self, name: str, value: object) -> None:
        box = self.part(name).locator("textarea, input:not([type=range])").first
        box.fill(str(value))
        box.press("Tab")

    def drawn_by(self, tab: str, prompt: str = PROMPT) -> Picture:
        """A picture of the WebUI's own tab, after which that of the Models is open again."""
        self.tab("txt2img")
        before = self.raw.locator("#txt2img_gallery img").first
        source = before.get_attribute("src") if before.count() else None
        self.generate(prompt)
        self.raw.wait_for_function(
            "(old) => { const one = document.querySelector('#txt2img_gallery img'); return one && one.src !== old; }",
            arg=source,
        )
        picture = self.drawn()
        self.tab(tab)
        return picture


@pytest.fixture
def page(webui: Webui, unharmed: None, tmp_path: Path) -> Iterator[ModelsPage]:
    own = webui.probe("facts")["checkpoint"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        raw = chromium.new_page(viewport={"width": 1400, "height": 1300})
        raw.route("**/*", _only_local)
        page = ModelsPage(raw, webui, tmp_path)
        try:
            page.open()
            yield page
        finally:
            page.shot("last")
            chromium.close()
            if webui.probe("tried"):
                webui.probe("put_back")
            if webui.probe("facts")["checkpoint"] != own:
                webui.load(own)
            take_pristine(webui)


def test_a_merge_is_tried_put_back_saved_and_loaded(page: ModelsPage, webui: Webui, pristine: Picture) -> None:
    own = webui.probe("facts")["checkpoint"]
    page.tab("Models")
    page.choose("merge_a", own)
    page.choose("merge_b", "other.safetensors")
    page.write_in("merge_output", "of_the_page")
    plain = page.drawn_by("Models")

    page.part("merge_trial").locator(".label-wrap").first.click()
    page.part("try").click()
    page.sees("#models_tried", re.compile("draws as a merge of"))
    page.shot("1-tried")
    tried = page.drawn_by("Models")
    assert not np.array_equal(tried, plain)

    page.part("put_back").click()
    page.sees("#models_job", "own weights again")
    expect(page.part("tried")).to_have_text("", timeout=SLOW)
    page.shot("2-put-back")
    assert np.array_equal(page.drawn_by("Models"), plain)
    assert webui.probe("compare_snapshot", label="pristine") == [] and np.array_equal(webui.txt2img(), pristine)

    page.part("merge_start").click()
    page.sees("#models_job", "Merged into")
    page.shot("3-saved")
    webui.load("of_the_page.safetensors")
    assert np.array_equal(page.drawn_by("Models"), tried), "the file draws what was tried"
