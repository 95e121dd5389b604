"""The tab Models in the real WebUI, in a real browser: a merge is tried, put back, saved and loaded, and drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser.chromium import MARKS
from tests.webui.page import SLOW, Page, expect, opened
from tests.webui.server import PROMPT, Picture, Webui, take_pristine

pytestmark = MARKS


class ModelsPage(Page):
    def part(self, name: str) -> Any:
        return self.raw.locator(f"#models_{name}").first

    def choose(self, name: str, value: str) -> None:
        """From the list."""
        self.part(name).locator("input").first.click()
        self.part(name).locator(".options li").filter(has_text=value).first.click()

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
    try:
        with opened(ModelsPage, webui, tmp_path, height=1300) as page:
            yield page
    finally:
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
    page.write_in("models_merge_output", "of_the_page")
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
