"""The Tagger in the real WebUI, in a real browser: tag, move the line, write, train; and the step of the Extras tab."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.dataset.history import History
from tests.browser.chromium import MARKS
from tests.tagging.conftest import MINI, draw_scenes
from tests.webui.page import SLOW, Page, expect, opened
from tests.webui.server import Webui

pytestmark = MARKS
NAME = "of_the_tagger"


class TaggerPage(Page):
    def part(self, name: str) -> Any:
        return self.raw.locator(f"#tagger_{name}").first

    def view(self, label: str) -> None:
        self.raw.locator("#tagger_views .tab-nav button").filter(has_text=label).click()

    def numbers(self) -> dict[str, int]:
        """The summary: what would change."""
        cells = self.raw.locator(".tagger-summary .tagger-facts > div")
        pairs = [cells.nth(n).inner_text().split("\n") for n in range(cells.count())]
        return {pair[0].strip(): int(pair[-1].replace(",", "")) for pair in pairs}


@pytest.fixture
def page(webui: Webui, stopped: None, tmp_path: Path) -> Iterator[TaggerPage]:
    shutil.copytree(MINI, webui.data / "models" / "wd-tagger" / "wd-mini", dirs_exist_ok=True)
    with opened(TaggerPage, webui, tmp_path) as page:
        yield page


def find_the_model(page: TaggerPage) -> None:
    page.tab("Tagger")
    page.part("rescan").click()
    expect(page.part("models")).to_contain_text("wd-mini", timeout=SLOW)


def test_tag_move_the_line_write_and_train(page: TaggerPage, webui: Webui, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    draw_scenes(folder, 12)
    (folder / "003.txt").write_text("my own words", encoding="utf-8")
    (folder / "torn.png").write_bytes((folder / "001.png").read_bytes()[:50])
    find_the_model(page)
    page.write_in("tagger_folder", tmp_path / "nowhere")
    page.part("tag_folder").click()
    page.sees("#tagger_notice .trainer-notice-error", "does not exist: check its path.")
    page.write_in("tagger_folder", folder)
    page.part("tag_folder").click()
    page.sees(".tagger-job", "12 pictures scored")
    page.sees(".tagger-job", "wd-mini runs on CPU")
    page.sees(".tagger-job", "torn.png: the file is damaged")
    page.sees(".tagger-table", "simple background")
    assert not (folder / "000.txt").exists(), "nothing is written before the button"
    before = page.numbers()
    page.write_in("tagger_trigger", "zork")
    page.write_in("tagger_general", 0.99)
    expect(page.raw.locator('.tagger-table tr[data-tag="zork"]')).to_be_visible(timeout=SLOW)
    expect(page.raw.locator(".tagger-summary")).not_to_contain_text(f"Tags added\n{before['Tags added']}", timeout=SLOW)
    assert page.numbers()["Tags added"] < before["Tags added"] + 12
    page.shot("1-line-moved")
    page.part("write").click()
    page.sees(".tagger-job", "12 captions written")
    page.shot("2-written")
    assert (folder / "003.txt").read_text("utf-8").startswith("zork, my own words")
    assert all((folder / f"{n:03}.txt").read_text("utf-8").startswith("zork") for n in range(12))
    train_on_it(page, webui, folder)


def train_on_it(page: TaggerPage, webui: Webui, folder: Path) -> None:
    (folder / "torn.png").unlink()
    page.open_trainer()
    fields = {
        "dataset_folder": folder, "dataset_width": 64, "dataset_height": 64, "training_max_steps": 4,
        "output_name": NAME, "dataset_trigger_word": "zork",
    }  # fmt: skip
    for field, value in fields.items():
        page.fill(field, value)
    page.find("start").click()
    page.sees(".trainer-state-finished", f"{NAME}.safetensors")
    import safetensors

    with safetensors.safe_open(webui.loras / f"{NAME}.safetensors", framework="np") as file:
        tags = json.loads((file.metadata() or {})["ss_tag_frequency"])["pictures"]
    assert tags["zork"] == 12 and tags["my own words"] == 1 and tags["simple background"] > 1


def test_one_picture_goes_to_txt2img(page: TaggerPage, tmp_path: Path) -> None:
    scene = draw_scenes(tmp_path / "one", 1)[0]
    find_the_model(page)
    page.raw.locator("#tagger_tabs > .tab-nav button").filter(has_text="One picture").click()
    page.raw.locator("#tagger_image input[type=file]").set_input_files(tmp_path / "one" / "000.png")
    page.sees(".tagger-scores", scene.shape)
    caption = page.part("caption").locator("textarea")
    expect(caption).to_have_value(re.compile(scene.shape), timeout=SLOW)
    page.shot("3-single")
    page.part("send").click()
    expect(page.raw.locator("#txt2img_prompt textarea")).to_have_value(re.compile(scene.shape), timeout=SLOW)


def test_the_step_of_the_extras_tab(page: TaggerPage, webui: Webui, tmp_path: Path) -> None:
    scene = draw_scenes(tmp_path / "one", 1)[0]
    find_the_model(page)
    webui.reload()  # the step lists the taggers that were known when the page was made
    page.open()
    page.tab("Extras")
    page.raw.locator("#extras_image input[type=file]").set_input_files(tmp_path / "one" / "000.png")
    expect(page.raw.locator("#extras_image img").first).to_be_visible(timeout=SLOW)
    page.raw.locator("#tagger_extras .label-wrap").click()
    page.shot("4-extras")
    page.raw.locator("#extras_generate").click()
    found = webui.until(lambda: sorted(webui.data.glob("outputs/extras-images/**/*.txt")), "the caption")
    text = found[-1].read_text("utf-8")
    assert scene.shape in text and f"{scene.background} background" in text
    history = History(found[-1].parent)
    entry = history.entries()[-1]
    assert (entry.label, entry.files, entry.undone) == ("Captions by the Extras tab", 1, False)
    history.undo()
    history.close()
    assert not found[-1].exists()
