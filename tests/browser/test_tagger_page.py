"""The Tagger of the standalone page in a real browser, with the miniature tagger: tag, slide, judge, write."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_trainer.captions.tags import split_tags
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.views import Places
from lib_trainer.training.desk import TrainingDesk
from tests.browser.axe import findings_of_both_themes
from tests.browser.chromium import MARKS, Tab, driver, later, open_tab, served, write_in
from tests.tagging.conftest import MINI, draw_scenes
from tests.ui.fakes import FakeGenerator, FakeHost

playwright = driver()
pytestmark = MARKS
expect = playwright.expect


@pytest.fixture
def address(tab: Tab, tmp_path: Path) -> Iterator[str]:
    from lib_trainer.ui.standalone import build_app

    shutil.copytree(MINI, tmp_path / "models" / "wd" / "wd-mini")
    desk = TaggerDesk(Places(lambda: [tmp_path / "models"], lambda: tmp_path / "models"))
    app = build_app(TrainingDesk(FakeHost(tmp_path)), FakeGenerator(), tagger=desk)
    with served(tab, app, desk) as address:
        yield address


@pytest.fixture
def page(tab: Tab, address: str) -> playwright.Page:
    page = tab.open(address, 1280, 1000)
    open_tab(page, "Tagger")
    return page


def test_tag_slide_judge_and_write(page: playwright.Page, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    draw_scenes(folder, 30)
    write_in(page, "tagger_folder", folder)
    expect(page.locator("#tagger_summary").first).to_contain_text("press Tag")
    page.locator("#tagger_tag_folder").click()
    expect(page.locator(".tagger-job")).to_contain_text("30 pictures scored")
    large = page.locator('.tagger-table tr[data-tag="large"]')
    expect(large).to_be_visible()
    before = large.locator("td").nth(3).inner_text()
    slider = page.locator("#tagger_general input[type=range]")
    slider.evaluate("(one) => { one.value = 0.97; one.dispatchEvent(new Event('input', {bubbles: true})); }")
    expect(large.locator("td").nth(3)).not_to_have_text(before)
    judge_the_first(page, folder)
    page.locator("#tagger_write").click()
    expect(page.locator(".tagger-job")).to_contain_text("30 captions written")
    with ScoreStore(folder) as store:
        origins = [origin for n in range(30) for origin in store.origins(folder / f"{n:03}.png").values()]
        assert "hand" in origins and any(origin.startswith("wd-mini ") for origin in origins)
    assert all(split_tags(path.read_text("utf-8")) for path in folder.glob("*.txt"))


@pytest.mark.usefixtures("without_training")
def test_axe_finds_nothing_grave(tab: Tab, address: str, tmp_path: Path) -> None:
    page = tab.open(f"{address}?__theme=dark", 1280, 1000)
    open_tab(page, "Tagger")
    folder = tmp_path / "pictures"
    draw_scenes(folder, 12)
    page.locator("#tagger_tag_folder").click()
    expect(page.locator("#tagger_notice").first).to_contain_text("No folder of pictures is given")
    found = findings_of_both_themes(page, "#tagger_notice", "#tagger_tabs")
    write_in(page, "tagger_folder", folder)
    page.locator("#tagger_tag_folder").click()
    expect(page.locator(".tagger-job")).to_contain_text("12 pictures scored")
    page.locator('.tagger-table tr[data-tag="large"]').click()
    for name in ("Tags", "First captions", "Near the line"):
        open_tab(page, name)
        roots = ("#tagger_page",) if name == "Tags" else ("#tagger_tabs",)
        found += [f"{name}: {line}" for line in findings_of_both_themes(page, *roots)]
    assert not found, "\n".join(found)


@pytest.mark.usefixtures("without_training")
def test_typing_a_path_reads_and_makes_nothing_until_it_is_written(page: playwright.Page, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    draw_scenes(folder, 3)
    draw_scenes(tmp_path / "a", 1)
    box = page.locator("#tagger_folder").locator("textarea, input").first
    summary = page.locator("#tagger_summary").first
    box.focus()
    for part in (str(tmp_path), "/a", "/b"):
        box.press_sequentially(part)
        page.wait_for_timeout(400)  # longer than a slider must rest
        expect(summary).not_to_contain_text("press Tag")
    box.press("Enter")
    expect(summary).to_contain_text("press Tag")
    assert list(tmp_path.rglob(".trainer")) == []


@pytest.mark.usefixtures("without_training")
def test_the_preset_sets_the_line_unless_it_is_moved_meanwhile(page: playwright.Page, tab: Tab) -> None:
    number, notice = page.locator("#tagger_general input[type=number]"), page.locator("#tagger_notice").first
    number.fill("0.5")
    page.locator("#tagger_preset").click()
    expect(number).to_have_value("0.35")
    page.locator("#tagger_rescan").click()
    expect(notice).to_contain_text("Taggers found: 1")
    number.fill("0.6")
    tab.delay_answers(300)
    page.locator("#tagger_preset").click()
    number.fill("0.7")
    expect(notice).to_contain_text("General tags: 0.35")
    expect(number).to_have_value("0.7")


@pytest.mark.usefixtures("without_training")
def test_buttons_without_a_folder_say_so(page: playwright.Page) -> None:
    """And the sentence stays until the next one."""
    notice = page.locator("#tagger_notice").first
    for name in ("tag_folder", "write", "reread"):
        page.locator(f"#tagger_{name}").click()
        expect(notice).to_contain_text("No folder of pictures is given")
        for _ in range(2):  # the answer to the second poll is asked for when that to the first is shown
            with page.expect_response(re.compile("/(run|api)/predict$")):
                later(page, 5000)
        expect(notice).to_contain_text("No folder of pictures is given")
        page.locator("#tagger_rescan").click()
        expect(notice).to_contain_text("Taggers found: 1")
    open_tab(page, "One picture")
    page.locator("#tagger_send").click()
    expect(notice).to_contain_text("drop a picture first")


def judge_the_first(page: playwright.Page, folder: Path) -> None:
    """With the keyboard alone: accept the first picture that is near the line of a tag."""
    page.locator('.tagger-table tr[data-tag="large"]').click()
    open_tab(page, "Near the line")
    card = page.locator(".tagger-card").first
    expect(card).to_be_visible()
    content = card.get_attribute("data-content")
    card.focus()
    page.keyboard.press("a")
    judged = page.locator(f'.tagger-card[data-content="{content}"]')
    expect(judged).to_have_class(re.compile("tagger-accepted"))
    expect(page.locator(".tagger-summary")).to_be_visible()
    with ScoreStore(folder) as store:
        for _ in range(200):
            if store.verdicts():
                break
            page.wait_for_timeout(50)
        assert store.verdicts() == {(content, "large"): True}
    if page.locator(".tagger-card").count() > 1:  # the cards were made anew meanwhile, and the keys go on
        expect(page.locator(".tagger-card").nth(1)).to_be_focused()
        page.keyboard.press("r")
        expect(page.locator(".tagger-card").nth(1)).to_have_class(re.compile("tagger-rejected"))


@pytest.mark.usefixtures("without_training")
def test_nothing_overflows(page: playwright.Page) -> None:
    for box in page.locator("#tagger_page .trainer-more .label-wrap").all():
        box.click()
    for width in (1024, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
