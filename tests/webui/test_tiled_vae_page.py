"""The accordion "Tiled VAE" in the real WebUI, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webui.server import PROMPT, Webui

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for path in (Path("/usr/bin/chromium"), Path("/usr/bin/chromium-browser")) if path.exists()), None
)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)"),
]
expect = playwright.expect
SLOW = 60_000
SCRIPT = "script_{tab}_tiled_vae_row_bands_{part}"


@pytest.fixture
def page(webui: Webui, tmp_path: Path) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        raw = chromium.new_page(viewport={"width": 1400, "height": 1300})
        raw.set_default_timeout(SLOW)
        raw.route("**/*", _only_local)
        try:
            raw.goto(webui.address, wait_until="domcontentloaded")
            raw.wait_for_selector("#txt2img_generate")
            yield raw
        finally:
            raw.screenshot(path=tmp_path / "last.png", full_page=True)
            chromium.close()


def _only_local(route: Any) -> None:
    local = route.request.url.startswith(("http://127.0.0.1", "data:", "blob:"))
    route.continue_() if local else route.abort()


def part(page: Any, tab: str, name: str) -> Any:
    return page.locator(f"#{SCRIPT.format(tab=tab, part=name)}")


def test_open_choose_and_generate(page: Any, webui: Webui, tmp_path: Path) -> None:
    webui.probe("vae_api")
    webui.probe("vae_last")
    accordion = part(page, "txt2img", "enabled")
    expect(accordion).to_contain_text("Tiled VAE")
    expect(part(page, "txt2img", "mode")).to_be_hidden()
    accordion.locator(".label-wrap").click()
    mode = part(page, "txt2img", "mode")
    expect(mode).to_be_visible()
    expect(mode.locator("input:checked")).to_have_value("Automatic")
    accordion.scroll_into_view_if_needed()
    accordion.screenshot(path=tmp_path / "accordion.png")
    mode.locator("label").filter(has_text="Always").click()
    for field, value in {"prompt": PROMPT, "width": 64, "height": 64, "steps": 4, "seed": 7}.items():
        box = page.locator(f"#txt2img_{field} textarea, #txt2img_{field} input[type=number]").first
        box.fill(str(value))
        box.press("Tab")
    page.locator("#txt2img_generate").click()
    expect(page.locator("#html_info_txt2img").first).to_contain_text("VAE bands: Always", timeout=SLOW)
    assert webui.probe("vae_last") == ["decoder"]
    page.screenshot(path=tmp_path / "txt2img.png", full_page=True)


def test_img2img_has_it_too_and_pasting_sets_it(page: Any) -> None:
    text = f"{PROMPT}\nSteps: 4, Sampler: DDIM, VAE bands: Always, VAE bands budget: 2.5"
    page.locator("#txt2img_prompt textarea").first.fill(text)
    page.locator("#txt2img_tools #paste").first.click()
    mode = part(page, "txt2img", "mode")
    expect(mode).to_be_visible()
    expect(mode.locator("input:checked")).to_have_value("Always")
    expect(part(page, "txt2img", "budget").locator("input")).to_have_value("2.5")
    page.locator("#tabs > .tab-nav > button").filter(has_text=re.compile(r"^\s*img2img\s*$")).click()
    expect(part(page, "img2img", "enabled")).to_be_visible()
    expect(part(page, "img2img", "mode")).to_be_hidden()


def test_a_budget_that_is_none_does_not_block_a_generation(page: Any) -> None:
    label = part(page, "txt2img", "enabled").locator(".label-wrap")
    label.click()  # opened is on
    part(page, "txt2img", "budget").locator("input").fill("-3")
    for field, value in {"prompt": PROMPT, "width": 64, "height": 64, "steps": 4, "seed": 7}.items():
        box = page.locator(f"#txt2img_{field} textarea, #txt2img_{field} input[type=number]").first
        box.fill(str(value))
        box.press("Tab")
    info = page.locator("#html_info_txt2img").first
    page.locator("#txt2img_generate").click()
    expect(info).to_contain_text("Steps: 4", timeout=SLOW)
    expect(page.locator("#html_log_txt2img").first).to_contain_text("Memory budget")
    label.click()  # closed is off
    page.locator("#txt2img_seed input").first.fill("8")
    page.locator("#txt2img_generate").click()
    expect(info).to_contain_text("Seed: 8", timeout=SLOW)
    expect(page.locator("#html_log_txt2img").first).not_to_contain_text("Memory budget")
