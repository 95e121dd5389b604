"""The WebUI in a real browser."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tests.browser import chromium
from tests.webui.server import Picture, Webui

playwright = chromium.driver()
expect = playwright.expect
SLOW = 60_000
"""Milliseconds: two busy cores run the WebUI, the training and the browser."""


class Page:
    """`raw` is playwright's page, which reaches nothing but this computer. `shots` is where screenshots go,
    `errors` what its scripts failed with."""

    def __init__(self, raw: Any, webui: Webui, shots: Path) -> None:
        self.raw, self.webui, self.shots = raw, webui, shots
        self.errors: list[str] = []
        raw.set_default_timeout(SLOW)
        raw.on("pageerror", lambda error: self.errors.append(str(error)))
        raw.route("**/*", _only_local)

    def open(self) -> None:
        self.raw.goto(self.webui.address, wait_until="domcontentloaded")
        self.raw.wait_for_selector("#txt2img_generate")

    def tab(self, label: str, bar: str = "tabs") -> None:
        self.raw.locator(f"#{bar} > .tab-nav > button").filter(has_text=re.compile(rf"^\s*{label}\s*$")).click()

    def open_trainer(self) -> None:
        self.tab("Train")
        self.tab("LoRA & more", "train_tabs")
        self.sees(".trainer-host", "mini-sd1")

    def find(self, name: str) -> Any:
        return self.raw.locator(f"#trainer_{name}").first

    def write_in(self, element: str, value: object) -> None:
        chromium.write_in(self.raw, element, value)

    def fill(self, field: str, value: object) -> None:
        self.raw.wait_for_function("window.trainerForm")
        self.raw.evaluate("(id) => trainerForm.reveal(document.getElementById(id))", f"trainer_{field}")
        self.find(field).locator("textarea, input").first.fill(str(value))

    def generate(self, prompt: str) -> None:
        """Fill in the WebUI's own txt2img tab and press its button."""
        for field, value in {"prompt": prompt, "width": 64, "height": 64, "steps": 4, "seed": 7}.items():
            self.write_in(f"txt2img_{field}", value)
        self.raw.locator("#txt2img_generate").click()

    def sees(self, selector: str, text: str | re.Pattern[str] = "") -> None:
        expect(self.raw.locator(selector).first).to_contain_text(text, timeout=SLOW)

    def shot(self, name: str) -> None:
        self.raw.screenshot(path=self.shots / f"{name}.png", full_page=True)

    def drawn(self) -> Picture:
        """The picture in txt2img's gallery, as the WebUI keeps it."""
        source = self.raw.locator("#txt2img_gallery img").first
        expect(source).to_be_visible(timeout=SLOW)
        answer = self.raw.request.get(source.get_attribute("src"))
        with Image.open(BytesIO(answer.body())) as image:
            return np.asarray(image.convert("RGB"))


Some = TypeVar("Some", bound=Page)


@contextlib.contextmanager
def opened(kind: type[Some], webui: Webui, shots: Path, width: int = 1400, height: int = 1100) -> Iterator[Some]:
    """A page in a browser of its own, as long as the context lasts. How it looked last is kept among `shots`."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(chromium.CHROMIUM), args=chromium.ARGUMENTS)
        page = kind(browser.new_page(viewport={"width": width, "height": height}), webui, shots)
        try:
            page.open()
            yield page
        finally:
            page.shot("last")
            browser.close()


def _only_local(route: Any) -> None:
    local = route.request.url.startswith(("http://127.0.0.1", "data:", "blob:"))
    route.continue_() if local else route.abort()
