"""A host that cannot train says so in a sentence, before anything is touched."""

from __future__ import annotations

import pytest

from tests.webui.server import Values, Webui

REFUSED = {
    "none": "No checkpoint is loaded: choose one at the top left of the page and wait until it is there.",
    "sdxl": "The loaded checkpoint is not laid out as SDXL (no CLIP text encoder): load one of SDXL.",
    "sd2": "The loaded checkpoint is not laid out as SD 2.x (no CLIP text encoder): load one of SD 2.x.",
    "sd3": "The loaded checkpoint is of SD 3, which is not supported yet: load one of SD 1.x, SD 2.x or SDXL.",
    "editing": "The loaded checkpoint is made for editing or depth: load one for txt2img or inpainting.",
    "unloaded": "The checkpoint was unloaded to the CPU: load it again",
    "stranger": "The loaded checkpoint is not laid out as SD 1.x (no CLIP text encoder): load one of SD 1.x.",
}
"""Traps 7 and 11 cannot occur: their models are among these."""


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(webui: Webui, unharmed: None, values: Values, kind: str) -> None:
    answer = webui.probe("refusal", kind=kind, values=values())
    assert answer["said"].startswith(REFUSED[kind])
    assert answer["described"] == answer["said"], "the page's header says the same"
    assert answer["untouched"]


def test_a_host_without_a_train_tab_gets_a_tab_of_its_own(webui: Webui) -> None:
    """As on Forge, whose scripts have no `on_ui_train_tabs`."""
    offered = webui.probe("own_tab")
    assert offered == {
        "label": "Trainer", "id": "trainer", "has": ["trainer_gallery", "trainer_poll", "trainer_start"],
    }  # fmt: skip


def test_in_the_webui_the_page_stands_once_in_the_train_tab(webui: Webui) -> None:
    tabs = webui.probe("tabs")
    assert tabs.count("LoRA & more") == 1
    assert "Trainer" not in tabs
