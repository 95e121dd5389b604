"""The two hosts draw the same picture from the same checkpoint, file and seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.webui.agreement import drawn_alike, take_along
from tests.webui.server import Webui


@pytest.mark.parametrize("prompt", ["red circle", "red circle <lora:probe:1>", "zork disc <lora:probe:0.5>"])
def test_both_hosts_draw_the_same(webui: Webui, lora: str, tmp_path: Path, prompt: str) -> None:
    take_along(webui.loras / f"{lora}.safetensors", tmp_path / "lora")
    assert drawn_alike(webui, tmp_path, prompt).std() > 5, "an empty picture shows nothing"
