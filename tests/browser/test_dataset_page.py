"""The Dataset tab in a real browser on the standalone page: open, filter, prune with a preview, undo, train."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_trainer.training.desk import TrainingDesk
from tests.browser.axe import findings, findings_of_both_themes
from tests.browser.chromium import MARKS, Tab, driver, served
from tests.ui.fakes import FakeGenerator, FakeHost

playwright = driver()
pytestmark = MARKS
expect = playwright.expect


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set" / "5_alba"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (96, 96), (index * 30, 90, 200)).save(folder / f"{index}.png")
        tags = ["alba", "1girl", "long hair", "red eyes"] + (["smile"] if index % 2 else [])
        (folder / f"{index}.txt").write_text(", ".join(tags), encoding="utf-8")
    return tmp_path / "set"


@pytest.fixture
def address(tab: Tab, tmp_path: Path) -> Iterator[str]:
    from lib_trainer.ui.standalone import build_app

    app = build_app(TrainingDesk(FakeHost(tmp_path)), FakeGenerator(), count_tokens=len)
    with served(tab, app) as address:
        yield address


@pytest.fixture
def page(tab: Tab, address: str) -> Any:
    raw = open_tab(tab, address)
    tab.delay_answers(300)  # what is pressed before an answer is on the page must find its place all the same
    return raw


def open_tab(tab: Tab, address: str) -> Any:
    raw = tab.open(address, 1400, 1100)
    raw.locator(".tab-nav button", has_text="Dataset").click()
    return raw


def text(root: Path, name: str) -> str:
    return (root / "5_alba" / name).read_text("utf-8")


def sees(page: Any, selector: str, words: str | re.Pattern[str]) -> None:
    expect(page.locator(selector).first).to_contain_text(words)


def open_set(page: Any, root: Path) -> None:
    box = page.locator("#dataset_folder textarea, #dataset_folder input").first
    box.fill(str(root))
    page.locator("#dataset_open").click()
    expect(page.locator(".dataset-cell")).to_have_count(8)


def test_open_filter_prune_with_a_preview_undo_and_train(page: Any, root: Path) -> None:
    before = text(root, "1.txt")
    open_set(page, root)
    page.locator("#dataset_filter").fill("smile AND (")
    sees(page, "#dataset_filter_hint", "Filter: ")
    page.locator("#dataset_filter").fill("smile")
    page.locator("#dataset_filter").press("Enter")
    expect(page.locator(".dataset-cell")).to_have_count(4)
    page.locator(".dataset-tab", has_text="Prune").click()
    page.locator("#dataset_trigger").fill("alba")
    page.locator(".dataset-card", has_text="Delete all feature tags").locator("button").click()
    expect(page.locator('[data-choice][value="long hair"]')).to_be_checked()
    page.locator('[data-choice][value="red eyes"]').focus()
    page.keyboard.press("Space")
    expect(page.locator('[data-choice][value="red eyes"]')).not_to_be_checked()
    page.locator(".dataset-proposal .dataset-main").click()
    sees(page, ".dataset-changes", "4 of 4 captions would change.")
    assert text(root, "1.txt") == before
    page.locator(".dataset-preview .dataset-main").click()
    sees(page, ".trainer-notice-info", "4 captions changed")
    assert text(root, "1.txt") == "alba, 1girl, red eyes, smile"
    assert text(root, "0.txt") == "alba, 1girl, long hair, red eyes"
    page.locator(".dataset-bar button", has_text="Undo").click()
    sees(page, ".trainer-notice-info", "Undone: Delete all feature tags")
    assert text(root, "1.txt") == before
    translate_tabs(page)
    page.locator("#dataset_train").click()
    expect(page.locator("#trainer_dataset_folder textarea, #trainer_dataset_folder input").first).to_have_value(
        str(root)
    )
    expect(page.locator("#trainer_start")).to_be_visible()


def test_buckets_and_crops_before_training(page: Any, root: Path) -> None:
    """The training form's sizes stand there; what is typed instead counts, and a bucket opens as its pictures."""
    Image.new("RGB", (300, 96), (200, 60, 60)).save(root / "5_alba" / "7.png")
    page.evaluate("document.querySelector('#trainer_buckets_enabled input').click()")
    open_set(page, root)
    page.locator(".dataset-tab", has_text="Buckets").click()
    expect(page.locator('[name="buckets.enabled"]')).to_be_checked()
    expect(page.locator(".dataset-buckets tbody tr")).to_have_count(2)
    for name, value in (("dataset.width", "128"), ("dataset.height", "128"), ("buckets.low", "64")):
        page.locator(f'[name="{name}"]').fill(value)
    page.locator("#dataset_bucket_form .dataset-main").click()
    expect(page.locator('[name="dataset.width"]')).to_have_value("128")
    page.locator(".dataset-buckets button", has_text="192 × 64").click()
    expect(page.locator(".dataset-crops figure")).to_have_count(1)
    sees(page, ".dataset-crops figcaption", "7.png: 4% cut")
    box, kept = (page.locator(one).bounding_box() for one in (".dataset-crop", ".dataset-crop i"))
    assert kept["width"] / box["width"] == pytest.approx(192 / 200, abs=0.01)
    assert kept["height"] / box["height"] == pytest.approx(1, abs=0.01)
    page.locator('[name="dataset.width"]').fill("wide")
    page.locator("#dataset_bucket_form .dataset-main").click()
    sees(page, ".trainer-notice-error", "must be a whole number")
    assert findings(page, "#dataset_page") == []


def translate_tabs(page: Any) -> None:
    """As the WebUI's localisation does: other words in the same elements."""
    bar = page.locator(".tab-nav button")
    bar.evaluate_all("(all) => all.forEach((one, n) => { one.textContent = `标签 ${n}`; })")


def test_the_set_that_was_pressed_is_in_the_form_the_first_time_too(
    tab: Tab, address: str, root: Path, tmp_path: Path
) -> None:
    """The form's restore of the last job comes with the first sight of it, and must not come over it."""
    from lib_trainer.config import dump_job, from_values
    from lib_trainer.ui.train.job_files import LAST_JOB

    jobs = tmp_path / "cache" / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    last = from_values({"dataset.folder": str(tmp_path / "old"), "output.name": "old", "preview.prompt": "an old one"})
    dump_job(last, jobs / LAST_JOB)
    # as in the WebUI, whose first tab is another one: the form is not seen before the set is pressed
    own = tab.raw.context.new_page()  # such a script stays in its page
    own.add_init_script("Object.defineProperty(document, 'visibilityState', {get: () => window.seen || 'hidden'});")
    page = open_tab(Tab(own, 0), address)
    open_set(page, root)
    page.locator("#dataset_train").click()
    page.evaluate("window.seen = 'visible'")
    folder = page.locator("#trainer_dataset_folder textarea, #trainer_dataset_folder input").first
    expect(folder).to_have_value(str(root))
    page.wait_for_timeout(2500)  # longer than the first poll, after which the form is restored
    expect(folder).to_have_value(str(root))
    name = page.locator("#trainer_output_name textarea, #trainer_output_name input").first
    assert name.input_value() != "old"
    own.close()


@pytest.mark.usefixtures("without_training")
def test_selects_have_an_arrow(page: Any, root: Path) -> None:
    open_set(page, root)
    for name in ("dataset_edit_kind", "dataset_scope"):
        image = page.locator(f"#{name}").evaluate("(one) => getComputedStyle(one).backgroundImage")
        assert image.count("linear-gradient") == 2, name
    minus = page.locator(".dataset-tags tr", has_text="smile").locator("button")
    expect(minus).to_have_text("without")
    minus.click()
    expect(page.locator(".dataset-cell")).to_have_count(4)


@pytest.mark.usefixtures("without_training")
def test_enter_in_the_folders_box_and_no_folder_are_answered(page: Any, root: Path) -> None:
    page.locator("#dataset_train").click()
    sees(page, "#dataset_notice", "No folder is given")
    expect(page.locator("#dataset_open")).to_be_visible()
    box = page.locator("#dataset_folder textarea, #dataset_folder input").first
    box.fill(str(root))
    box.press("Enter")
    expect(page.locator(".dataset-cell")).to_have_count(8)


def test_a_findings_trash_is_shown_first_and_is_for_the_forms_size(page: Any, root: Path) -> None:
    open_set(page, root)
    page.locator(".dataset-tab", has_text="Check").click()
    expect(page.locator("#dataset_width")).to_have_value("512")
    page.locator("#dataset_check_form button", has_text="Check the set").click()
    small = page.locator(".dataset-finding", has_text="Smaller than the training size")
    small.locator("button", has_text="Move to the trash").click()
    sees(page, ".dataset-changes", "16 files would go to the set's trash.")
    assert len(list(root.rglob("[0-9].png"))) == 8
    page.locator(".dataset-preview .dataset-main").click()
    expect(page.locator(".dataset-cell")).to_have_count(0)
    expect(small).to_have_count(0)
    page.locator(".dataset-bar button", has_text="Undo").click()
    expect(page.locator(".dataset-cell")).to_have_count(8)
    expect(small).to_have_count(1)


@pytest.mark.usefixtures("without_training")
def test_axe_finds_nothing_grave(tab: Tab, address: str, root: Path) -> None:
    page = open_tab(tab, f"{address}?__theme=dark")
    found = findings_of_both_themes(page, "#dataset_page")
    open_set(page, root)
    page.locator(".dataset-cell").nth(1).click()
    expect(page.locator(".dataset-chip")).to_have_count(5)
    for name in ("Edit", "Prune", "Check", "History"):
        page.locator(".dataset-tab", has_text=name).click()
        expect(page.locator(".dataset-tab.dataset-on")).to_have_text(name)
        if name == "Prune":
            page.locator(".dataset-card", has_text="Delete all feature tags").locator("button").click()
            page.locator("#dataset_trigger").fill("alba")
            page.locator(".dataset-proposal .dataset-main").click()
            expect(page.locator(".dataset-preview")).to_be_visible()
        if name == "Check":
            page.locator("#dataset_check_form button", has_text="Check the set").click()
            expect(page.locator(".dataset-report svg").first).to_be_visible()
        roots = ("#dataset_page",) if name == "Edit" else ("#dataset_work", "#dataset_preview", "#dataset_bar")
        found += [f"{name}: {line}" for line in findings_of_both_themes(page, *roots)]
    assert not found, "\n".join(found)


@pytest.mark.usefixtures("without_training")
def test_what_is_typed_before_an_answer_is_there_stays(page: Any, root: Path) -> None:
    """The answer replaces the field that is typed into; what is typed goes along with the next command."""
    open_set(page, root)
    page.locator(".dataset-tab", has_text="Prune").click()
    expect(page.locator("#dataset_trigger")).to_have_value("")
    page.evaluate(
        """() => {
            document.querySelector(".dataset-card button").click();
            const box = document.getElementById("dataset_trigger");
            box.value = "alba";
            box.dispatchEvent(new Event("input", {bubbles: true}));
        }"""
    )
    expect(page.locator(".dataset-proposal")).to_be_visible()
    expect(page.locator("#dataset_trigger")).to_have_value("alba")
    page.locator(".dataset-proposal .dataset-main").click()
    expect(page.locator(".dataset-preview")).to_be_visible()


@pytest.mark.usefixtures("without_training")
def test_what_is_chosen_and_filled_in_stays_where_its_panel_is_replaced(page: Any, root: Path) -> None:
    """Lists, switches and forms, whether they were set before a command or while its answer was on its way."""
    open_set(page, root)
    page.locator("#dataset_edit_kind").select_option("replace")
    form = page.locator('form.dataset-edit[data-name="replace"]')
    form.locator("[name]").first.fill("smile")
    page.locator(".dataset-cell").nth(0).click()
    page.locator(".dataset-cell").nth(2).click(modifiers=["Shift"])
    sees(page, "#dataset_scope", "the selection (3)")
    expect(page.locator("#dataset_edit_kind")).to_have_value("replace")
    expect(form.locator("[name]").first).to_have_value("smile")
    expect(form).to_be_visible()
    page.locator(".dataset-tab", has_text="Prune").click()
    expect(page.locator("#dataset_scope")).to_have_value("selection")
    page.locator(".dataset-card button").first.click()
    page.locator("#dataset_scope").select_option("everything")
    expect(page.locator(".dataset-proposal")).to_be_visible()
    expect(page.locator("#dataset_scope")).to_have_value("everything")
    page.locator(".dataset-cell").nth(4).click()
    sees(page, "#dataset_scope", "the selection (1)")
    expect(page.locator("#dataset_scope")).to_have_value("everything")
    page.locator(".dataset-tab", has_text="Check").click()
    page.locator("#dataset_mirrored").check()
    page.locator("#dataset_check_form button", has_text="Check the set").click()
    expect(page.locator(".dataset-report svg").first).to_be_visible()
    expect(page.locator("#dataset_mirrored")).to_be_checked()


@pytest.mark.usefixtures("without_training")
def test_chips_selection_and_keys(page: Any, tab: Tab, root: Path) -> None:
    """On a slow machine, whose page is behind with what it shows too."""
    open_set(page, root)
    tab.slow_down(2)
    page.locator(".dataset-cell").nth(1).click()
    expect(page.locator(".dataset-cell").nth(1)).to_have_class(re.compile("dataset-current"))
    expect(page.locator(".dataset-chip")).to_have_count(5)
    page.keyboard.press("a")
    page.keyboard.type("hat")
    composed = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    assert page.evaluate(f"document.activeElement.dispatchEvent({composed})"), "an input method takes its word"
    expect(page.locator("#dataset_new_tag")).to_have_value("hat")
    page.keyboard.press("Enter")
    expect(page.locator(".dataset-chip")).to_have_count(6)
    expect(page.locator("#dataset_new_tag")).to_be_focused()
    page.keyboard.type("gloves")
    page.keyboard.press("Enter")
    expect(page.locator(".dataset-chip")).to_have_count(7)
    page.locator(".dataset-chip").nth(2).focus()
    page.keyboard.press("Delete")
    expect(page.locator(".dataset-chip")).to_have_count(6)
    page.keyboard.press("Alt+ArrowLeft")
    sees(page, ".dataset-chip:nth-of-type(2)", "red eyes")
    assert text(root, "1.txt") == "alba, red eyes, 1girl, smile, hat, gloves"
    page.keyboard.press("Control+z")
    sees(page, ".trainer-notice-info", "Undone: Caption of 5_alba/1.png")
    page.evaluate(  # Caps Lock is on
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Z', ctrlKey: true, bubbles: true}))"
    )
    expect(page.locator(".dataset-chip")).to_have_count(7)
    page.locator(".dataset-cell").nth(4).click(modifiers=["Shift"])
    sees(page, ".dataset-chosen", "4 selected")
    page.keyboard.press("ArrowRight")
    sees(page, ".dataset-column-picture .dataset-head", "5_alba/5.png")
    page.locator(".dataset-tab", has_text="Check").click()
    page.locator("#dataset_check_form button", has_text="Check the set").click()
    expect(page.locator(".dataset-report svg").first).to_be_visible()
