"""Grids in a real browser: steps × prompts while a run goes on, saved steps × weights after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.browser import test_page as pages
from tests.browser.axe import findings_of_both_themes
from tests.browser.chromium import MARKS, Tab
from tests.browser.test_page import Page, Site, expect, open_page

pytestmark = MARKS
site = pages.site
SHOTS = Path(os.environ.get("SHOTS") or ".")


def shot(page: Page, name: str) -> None:
    if "SHOTS" in os.environ:
        page.raw.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def save_steps(site: Site) -> None:
    """What a run of the fakes does not write."""
    folder: Any = site.runner.host.lora_folder()
    folder.mkdir(parents=True)
    for name in ("cat-step00000020", "cat-step00000040", "cat"):
        (folder / f"{name}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def test_several_prompts_and_what_was_saved(tab: Tab, site: Site) -> None:
    page = open_page(tab, site, "?__theme=dark")
    page.fill_job(site, steps=60)
    page.field("preview_prompt").fill("a cat --d 5\na dog --n blurry")
    page.find("start").click()
    page.sees(".trainer-state-finished", "cat.safetensors")
    captions = page.raw.locator("#trainer_gallery .caption-label")
    expect(captions).to_have_text(
        ["Steps and prompts", *(f"Step {step}, prompt {number}" for step in (60, 40, 20) for number in (1, 2))]
    )
    assert page.raw.locator("#trainer_gallery img").first.evaluate("image => image.naturalWidth") > 2 * 192
    shot(page, "previews")
    page.raw.locator("#trainer_grid_box > .label-wrap").click()
    draw = page.find("draw_grid")
    draw.click()
    page.sees("#trainer_notice", "There are no saved files of cat: train it first")
    save_steps(site)
    weights = page.raw.locator("#trainer_grid_weights textarea, #trainer_grid_weights input").first
    weights.fill("much")
    draw.click()
    page.sees("#trainer_notice", "Weights = 'much' are no numbers")
    expect(page.raw.locator("#trainer_grid_weights .trainer-field-error")).to_be_visible()
    page.raw.locator("#trainer_grid_weights .trainer-back").click()
    expect(weights).to_have_value("0, 0.5, 0.75, 1")
    weights.fill("0, 0.5, 1")
    draw.click()
    drawn = page.raw.locator("#trainer_grid img.trainer-steps-grid")
    expect(drawn).to_be_visible()
    assert drawn.evaluate("image => image.naturalWidth") > 6 * 64
    page.sees("#trainer_grid", "The grid is in ")
    expect(page.find("start")).to_be_enabled()
    assert findings_of_both_themes(page.raw, ".trainer-right") == []
    shot(page, "steps-grid-dark")
    page.raw.evaluate("document.body.classList.remove('dark')")
    shot(page, "steps-grid")
    page.raw.set_viewport_size({"width": 420, "height": 900})
    assert page.raw.evaluate("document.documentElement.scrollWidth") <= 420
    shot(page, "steps-grid-narrow")
