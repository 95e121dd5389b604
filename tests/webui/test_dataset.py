"""The Dataset tab in the real WebUI, in a real browser: open, filter, prune with a preview, undo, train."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniature.world import write_concept
from tests.browser.chromium import MARKS
from tests.webui.page import Page, expect, opened
from tests.webui.server import Webui

pytestmark = MARKS


@pytest.fixture
def page(webui: Webui, unharmed: None, stopped: None, tmp_path: Path) -> Iterator[Page]:
    with opened(Page, webui, tmp_path, 1500, 1300) as page:
        yield page
    assert [error for error in page.errors if "dataset" in error.lower()] == []


def test_open_filter_prune_undo_and_train(page: Page, webui: Webui, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    folder = write_concept(root, count=8)
    (folder / ".trainer").mkdir()
    (folder.parent / ".trainer").mkdir()
    (folder.parent / ".trainer" / "groups.csv").write_text("body,red;blue\n", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    page.tab("Dataset")
    page.raw.locator("#dataset_folder textarea, #dataset_folder input").first.fill(str(root))
    page.raw.locator("#dataset_open").click()
    expect(page.raw.locator(".dataset-cell")).to_have_count(8)
    page.raw.locator("#dataset_filter").fill("red AND NOT blue")
    page.raw.locator("#dataset_filter").press("Enter")
    expect(page.raw.locator(".dataset-cell")).to_have_count(4)
    page.raw.locator(".dataset-tab", has_text="Prune").click()
    page.raw.locator("#dataset_trigger").fill("zorb")
    page.raw.locator(".dataset-card", has_text="Delete all feature tags").locator("button").click()
    expect(page.raw.locator('[data-choice][value="red"]')).to_be_checked()
    page.raw.locator(".dataset-proposal .dataset-main").click()
    page.sees(".dataset-changes", "4 of 4 captions would change.")
    page.shot("preview")
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before
    page.raw.locator(".dataset-preview .dataset-main").click()
    page.sees("#dataset_page .trainer-notice-info", "4 captions changed")
    assert not any(b"red," in path.read_bytes() for path in folder.glob("*.txt"))
    page.raw.locator(".dataset-bar button", has_text="Undo").click()
    page.sees("#dataset_page .trainer-notice-info", "Undone: Delete all feature tags")
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before
    train(page, webui, root)
    shutil.rmtree(root / ".trainer")


def train(page: Page, webui: Webui, root: Path) -> None:
    """The button opens the training form with the set's folder; a short run from there leaves a LoRA."""
    labels = page.raw.locator("#tabs > .tab-nav > button, #train_tabs > .tab-nav > button")
    labels.evaluate_all("(all) => all.forEach((one, n) => { one.textContent = `标签 ${n}`; })")  # as a translation does
    page.raw.locator("#dataset_train").click()
    page.sees(".trainer-host", "mini-sd1")
    expect(page.find("dataset_folder").locator("textarea, input").first).to_have_value(str(root))
    for field, value in {
        "output_name": "of_the_set", "dataset_width": 64, "dataset_height": 64, "training_max_steps": 3,
    }.items():  # fmt: skip
        page.fill(field, value)
    page.raw.locator("#trainer_training_precision input").first.click()  # in the fold of the steps, which is open
    page.raw.locator("#trainer_training_precision li", has_text="fp32").first.click()
    page.find("start").click()
    page.sees(".trainer-status", re.compile(r"Finished\s*of_the_set"))
    assert (webui.loras / "of_the_set.safetensors").exists()
