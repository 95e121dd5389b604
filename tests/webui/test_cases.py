"""What a new user tried in the real WebUI's page, and what is right then: each test names its case."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import dump_job, from_values
from tests.browser.axe import findings
from tests.browser.chromium import MARKS, launched
from tests.support import draw_pictures
from tests.webui.page import Page, expect
from tests.webui.server import Webui

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for context in launched(tmp_path_factory.mktemp("profile")):
        yield context.browser


@pytest.fixture
def page(browser: Any, webui: Webui, stopped: None, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1500, "height": 1300})
    page = Page(context.new_page(), webui, tmp_path)
    page.open()
    yield page
    context.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "set", 5)


def box(page: Page, element: str) -> Any:
    return page.raw.locator(f"#{element} textarea, #{element} input").first


def open_set(page: Page, root: Path) -> None:
    page.tab("Dataset")
    box(page, "dataset_folder").fill(str(root))
    box(page, "dataset_folder").press("Enter")
    expect(page.raw.locator(".dataset-cell")).to_have_count(5)


def test_the_set_that_was_pressed_is_in_a_fresh_pages_form(page: Page, webui: Webui, root: Path) -> None:
    """Case 21: the form's restore of the last job does not come over it."""
    jobs = webui.data / "trainer" / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    dump_job(from_values({"dataset.folder": "/old", "output.name": "old"}), jobs / "last.toml")
    page.open()
    open_set(page, root)
    page.raw.locator("#dataset_train").click()
    expect(box(page, "trainer_dataset_folder")).to_have_value(str(root))
    page.raw.wait_for_timeout(2500)  # longer than the first poll, after which the form is restored
    expect(box(page, "trainer_dataset_folder")).to_have_value(str(root))
    expect(box(page, "trainer_output_name")).not_to_have_value("old")


def test_nothing_leaves_a_set_unasked(page: Page, root: Path) -> None:
    """Case 23: the check is for the size of Train's form, what would go is shown first, and the report is renewed."""
    page.open_trainer()
    for side in ("width", "height"):
        page.fill(f"dataset_{side}", 128)
    open_set(page, root)
    page.raw.locator(".dataset-tab", has_text="Check").click()
    expect(page.raw.locator("#dataset_width")).to_have_value("128")
    page.raw.locator("#dataset_check_form button", has_text="Check the set").click()
    small = page.raw.locator(".dataset-finding", has_text="Smaller than the training size")
    small.locator("button", has_text="Move to the trash").click()
    page.sees(".dataset-changes", "10 files would go to the set's trash.")
    assert len(list(root.glob("*.png"))) == 5
    page.raw.locator(".dataset-preview .dataset-main").click()
    expect(page.raw.locator(".dataset-cell")).to_have_count(0)
    expect(small).to_have_count(0)
    page.raw.locator(".dataset-bar button", has_text="Undo").click()
    expect(page.raw.locator(".dataset-cell")).to_have_count(5)
    assert len(list(root.glob("*.png"))) == 5


def test_no_click_is_silent(page: Page, root: Path) -> None:
    """Case 25: a sentence, or what is obviously meant."""
    page.tab("Tagger")
    for name in ("tag_folder", "write"):
        page.raw.locator(f"#tagger_{name}").click()
        page.sees("#tagger_notice", "No folder of pictures is given")
        page.raw.locator("#tagger_rescan").click()
        page.sees("#tagger_notice", "Taggers found")
    page.tab("Dataset")
    page.raw.locator("#dataset_train").click()
    page.sees("#dataset_notice", "No folder is given")
    open_set(page, root)
    page.raw.locator(".dataset-tab", has_text="Prune").click()
    page.raw.locator("#dataset_trigger").fill("zork")
    page.raw.locator(".dataset-card", has_text="Delete all feature tags").locator("button").click()
    for ticked in page.raw.locator("[data-choice]:checked").all():
        ticked.uncheck()
    page.raw.locator(".dataset-proposal .dataset-main").click()
    page.sees("#dataset_page .trainer-notice", re.compile("[Tt]ick"))


def test_a_name_can_be_used_again(page: Page, webui: Webui, root: Path) -> None:
    """Case 27: what a stopped run left is discarded beside the field, and the name is free."""
    page.open_trainer()
    left = webui.loras / "once.safetensors"
    left.write_bytes(b"what a stopped run left")
    earlier = {path.name for path in webui.loras.rglob("*.old")}
    for field, value in {
        "dataset_folder": root, "dataset_width": 64, "dataset_height": 64, "output_name": "once",
        "training_max_steps": 1, "preview_every": 0,
    }.items():  # fmt: skip
        page.fill(field, value)
    page.find("start").click()
    expect(page.find("start_free")).to_have_text("Start as once-2")
    page.find("discard").click()
    page.sees("#trainer_notice", "once.safetensors went to the trash")
    gone = {path.name for path in webui.loras.rglob("*.old")} - earlier
    assert not left.exists() and gone == {"once.safetensors.old"}
    page.find("start").click()
    page.sees(".trainer-state-finished", "once.safetensors")


def test_looks_say_what_they_do(page: Page, root: Path) -> None:
    """Case 30: arrows, words, no words of an earlier state, and no serious finding of axe-core in what is ours."""
    open_set(page, root)
    image = page.raw.locator("#dataset_edit_kind").evaluate("(one) => getComputedStyle(one).backgroundImage")
    assert image.count("linear-gradient") == 2
    expect(page.raw.locator(".dataset-tags tr button").first).to_have_text("without")
    found = [f"Dataset: {line}" for line in findings(page.raw, "#dataset_page")]
    page.tab("Tagger")
    found += [f"Tagger: {line}" for line in findings(page.raw, "#tagger_page")]
    page.open_trainer()
    found += [f"Train: {line}" for line in findings(page.raw, "#trainer_page")]
    assert not found, "\n".join(found)
