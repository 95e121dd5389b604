"""The Dataset tab in a real browser on the standalone page: open, filter, prune with a preview, undo, train."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_trainer.jobs import JobRunner
from tests.ui.fakes import FakeGenerator, FakeHost

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for path in (Path("/usr/bin/chromium"), Path("/usr/bin/chromium-browser")) if path.exists()), None
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)"),
]
expect = playwright.expect
SLOW = 90_000


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
def page(tmp_path: Path) -> Iterator[Any]:
    from lib_trainer.ui.standalone_page import build_app, serve

    app = build_app(JobRunner(FakeHost(tmp_path)), FakeGenerator(), count_tokens=len)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, errors = serve(app, port=port, block=False), []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS, timeout=SLOW)
        raw = chromium.new_page(viewport={"width": 1400, "height": 1100})
        raw.set_default_timeout(SLOW)
        expect.set_options(timeout=SLOW)
        raw.on("pageerror", lambda error: errors.append(str(error)))
        # as on a slow machine: what is pressed before an answer is on the page must find its place all the same
        raw.context.new_cdp_session(raw).send("Emulation.setCPUThrottlingRate", {"rate": 3})
        raw.goto(address)
        raw.locator(".tab-nav button", has_text="Dataset").click()
        yield raw
        raw.screenshot(path=tmp_path / "last.png", full_page=True)
        chromium.close()
    app.close()
    assert errors == []


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
    page.locator("#dataset_train").click()
    expect(page.locator("#trainer_dataset_folder textarea, #trainer_dataset_folder input").first).to_have_value(
        str(root)
    )
    expect(page.locator("#trainer_start")).to_be_visible()


def test_chips_selection_and_keys(page: Any, root: Path) -> None:
    open_set(page, root)
    page.locator(".dataset-cell").nth(1).click()
    expect(page.locator(".dataset-cell").nth(1)).to_have_class(re.compile("dataset-current"))
    expect(page.locator(".dataset-chip")).to_have_count(5)
    page.keyboard.press("a")
    page.keyboard.type("hat")
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
    page.locator(".dataset-cell").nth(4).click(modifiers=["Shift"])
    sees(page, ".dataset-chosen", "4 selected")
    page.keyboard.press("ArrowRight")
    sees(page, ".dataset-column-picture .dataset-head", "5_alba/5.png")
    page.locator(".dataset-tab", has_text="Check").click()
    page.locator("#dataset_check_form button", has_text="Check the set").click()
    expect(page.locator(".dataset-report svg").first).to_be_visible()
