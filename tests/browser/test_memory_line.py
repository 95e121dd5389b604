"""The forecast of memory in a real browser: it follows what is typed, and Start asks once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_trainer.ports import HeldPart
from lib_trainer.training import memory_need
from lib_trainer.training.memory_table import tables
from tests.browser import test_page as pages
from tests.browser.chromium import MARKS, Tab
from tests.browser.test_page import Site, expect, open_page

pytestmark = MARKS
site = pages.site


def test_the_line_follows_what_is_typed_and_start_asks_once(
    tab: Tab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host: Any = site.runner.host
    host.model_parts = {part: HeldPart(own.all, torch.float16) for part, own in tables()["sd1"].weights.items()}
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 12 * 2**30)
    page = open_page(tab, site)
    line = page.raw.locator("#trainer_memory .trainer-memory")
    expect(line).to_contain_text("of the 12.0 GiB")
    assert "trainer-memory-fits" in str(line.get_attribute("class"))
    before = line.inner_text()
    page.fill_job(site, 60)
    page.field("training_batch_size").fill("4")
    page.sees("#trainer_memory .trainer-memory-short", "turn on “Gradient checkpointing”")
    assert line.inner_text() != before
    page.find("start").click()
    page.sees("#trainer_notice", "Press Start again")
    assert not site.runner.running
    page.find("start").click()
    page.sees(".trainer-status", "Running")
