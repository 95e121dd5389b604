"""The tab Models of the standalone page in a real browser: choose, see, merge; sliders; a refusal beside its field."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_trainer.toolbox.desk import ToolDesk
from lib_trainer.training.desk import TrainingDesk
from tests.browser.axe import findings
from tests.browser.chromium import MARKS, SLOW, Tab, driver, open_tab, served, write_in
from tests.toolbox.models import SD1, save, some
from tests.ui.fakes import FakeGenerator, FakeHost

playwright = driver()
pytestmark = MARKS
expect = playwright.expect


@pytest.fixture
def page(tab: Tab, tmp_path: Path) -> Iterator[playwright.Page]:
    from lib_trainer.ui.standalone import build_app

    (tmp_path / "checkpoints").mkdir()
    for number, name in enumerate(("one", "two")):
        save(tmp_path / "checkpoints" / f"{name}.safetensors", some(SD1, number), format="pt")
    tools = ToolDesk()
    app = build_app(TrainingDesk(FakeHost(tmp_path)), FakeGenerator(), tools=tools)
    with served(tab, app, tools) as address:
        page = tab.open(address, 1280, 1000)
        open_tab(page, "Models")
        yield page


@pytest.mark.usefixtures("without_training")
def test_a_merge_from_list_to_file(page: playwright.Page, tmp_path: Path) -> None:
    page.locator("#models_merge_a input").click()
    page.locator("#models_merge_a .options li").filter(has_text="one.safetensors").click()
    page.locator("#models_merge_start").click()
    refused = page.locator("#models_merge_b .trainer-field-error")
    expect(refused).to_contain_text("needs a model B")
    write_in(page, "models_merge_b", tmp_path / "checkpoints" / "two.safetensors")
    expect(refused).to_have_count(0)
    write_in(page, "models_merge_output", "mixed")

    page.locator("#models_merge_blocks_curve summary").click()
    panel = page.locator("#models_merge_blocks_curve .models-blocks")
    expect(panel.locator("input[type=range]")).to_have_count(26)
    slider = panel.get_by_label("IN03")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowUp")
    text = page.locator("#models_merge_blocks textarea, #models_merge_blocks input").first
    expect(text).to_have_value(re.compile(r"^0\.5,0\.5,0\.5,0\.5,0\.65,0\.5"))
    panel.locator("select").select_option("GRAD_V")
    expect(text).to_have_value("GRAD_V")
    expect(panel.get_by_label("M00")).to_have_value("0")
    assert panel.evaluate("one => one.open"), "a drawing that is made anew stays open"
    panel.get_by_label("M00").press("ArrowUp")
    expect(text).to_have_value(re.compile(r"^0,1,0\.91666"), timeout=SLOW)  # the others keep their numbers
    panel.locator("summary").click()
    write_in(page, "models_merge_blocks", "GRAD_A")
    panel.locator("summary").click()  # what was written while it was closed is shown, and stays
    expect(panel.get_by_label("M00")).to_have_value("1")
    expect(text).to_have_value("GRAD_A")
    assert panel.evaluate("one => one.open")
    write_in(page, "models_merge_weight", 0.3)
    page.locator("#models_merge_weight .trainer-back").click()
    expect(page.locator("#models_merge_weight input").first).to_have_value("0.5")

    page.locator("#models_merge_look").click()
    expect(page.locator("#models_notice").first).to_contain_text("This would be done")
    page.locator("#models_merge_start").click()
    expect(page.locator("#models_job .models-ended")).to_contain_text("Merged into")
    assert (tmp_path / "checkpoints" / "mixed.safetensors").is_file()
    mixed = page.locator("#models_merge_a .options li").filter(has_text="mixed.safetensors")
    deadline = time.monotonic() + SLOW / 1000
    while not mixed.count() and time.monotonic() < deadline:  # gradio shows what is new in a list when it is opened
        page.keyboard.press("Tab")  # while it is open it is no list for a screen reader, either
        page.locator("#models_merge_a input").click()
        page.wait_for_timeout(200)
    expect(mixed).to_have_count(1)
    page.keyboard.press("Tab")
    assert findings(page, "#models_page") == []


@pytest.mark.usefixtures("without_training")
def test_a_file_of_the_list_is_one_line_more(page: playwright.Page, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.safetensors").write_bytes(b"looked at when it is combined")
    open_tab(page, "Combine")
    page.locator("#models_lists").click()
    box = page.locator("#models_combine_loras textarea")
    box.fill("mine.safetensors")
    for name in ("one", "two"):
        page.locator("#models_combine_loras_add input").click()
        page.locator("#models_combine_loras_add .options li").filter(has_text=f"{name}.safetensors").click()
        expect(page.locator("#models_combine_loras_add input")).to_have_value("")
    expect(box).to_have_value(f"mine.safetensors\n{folder / 'one.safetensors'}\n{folder / 'two.safetensors'}")


def test_duplicates_are_ticked(page: playwright.Page, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "copy.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    open_tab(page, "Duplicates")
    expect(page.locator("#models_duplicates_folders textarea")).to_have_value(re.compile("checkpoints"))
    expect(page.locator("#models_duplicates_form .trainer-changed")).to_have_count(0)  # the host's folders are usual
    page.locator("#models_duplicates_start").click()
    expect(page.locator("#models_job [data-trash]")).to_have_count(2)
    page.locator(f'#models_job [data-trash="{folder / "copy.safetensors"}"]').check()
    expect(page.locator("#models_duplicates_trash textarea")).to_have_value(str(folder / "copy.safetensors"))
    page.locator("#models_duplicates_start").click()
    expect(page.locator("#models_job").first).to_contain_text("is in the trash now")
    assert not (folder / "copy.safetensors").exists()
