"""Optimizer and schedule in a real browser: the drawing follows the form, and what is missing is offered."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lib_trainer.training import optimizers, packages
from tests.browser import test_page as pages
from tests.browser.chromium import MARKS, Tab
from tests.browser.test_page import Site, expect, open_page

pytestmark = MARKS
site = pages.site


def choose(page: Any, name: str) -> None:
    page.field("optimizer_name").click()
    page.raw.locator("ul.options li").filter(has_text=re.compile(rf"(^|\s){name}\s*$")).first.click(timeout=20_000)


def test_the_drawing_follows_the_form_and_a_missing_package_is_offered(
    tab: Tab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(packages, "_pip", lambda arguments: asked.append(arguments[1]))
    found = optimizers.importlib.util.find_spec
    monkeypatch.setattr(
        optimizers.importlib.util, "find_spec", lambda name: None if name == "pytorch_optimizer" else found(name)
    )
    page = open_page(tab, site)
    page.fill_job(site, 60)
    drawing = page.raw.locator("#trainer_schedule svg")
    expect(drawing).to_have_attribute("aria-label", "cosine over 60 steps")
    page.field("optimizer_warmup").fill("6")
    expect(drawing).to_have_attribute("aria-label", "cosine over 60 steps, after 6 steps of warm-up")
    button = page.raw.locator("#trainer_install")
    expect(button).to_be_hidden()
    choose(page, "Lion")
    expect(button).to_have_text("Install pytorch-optimizer")
    button.click()
    page.sees("#trainer_notice", "pytorch-optimizer is installed.")
    assert asked == ["pytorch-optimizer>=4.1,<5"]
    choose(page, "AdamWScheduleFree")
    expect(page.raw.locator("#trainer_optimizer_schedule")).to_be_hidden()
    expect(drawing).to_have_attribute("aria-label", "constant over 60 steps, after 6 steps of warm-up")
