"""`[name]` and `[filewords]` in captions and templates (case 11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.captions.variation import Moment
from lib_trainer.config import from_values
from lib_trainer.dataset.scan import with_trigger
from lib_trainer.kinds.captions import CaptionMaker, captions_of
from lib_trainer.kinds.registry import kind_of
from tests.support import ModelHost, job_values


def made(maker: CaptionMaker, caption: str) -> str:
    return maker(caption, torch.Generator().manual_seed(0))


def maker_of(tmp_path: Path, template: str = "", **changes: Any) -> CaptionMaker:
    host: Any = ModelHost(None, tmp_path)  # type: ignore[arg-type]
    if template:
        (tmp_path / "t.txt").write_text(template, encoding="utf-8")
        changes["dataset__template"] = str(tmp_path / "t.txt")
    job = from_values(job_values(tmp_path, **changes))
    return captions_of(kind_of(job), job, host)


EMBEDDING = {"network__kind": "embedding", "output__name": "zrk-a", "dataset__trigger_word": ""}
CAPTIONS = [
    ({}, "a photo of [name], red", "a photo of zork, red"),
    ({}, "[name] and [name]", "zork and zork"),
    ({}, "zork, red", "zork, red"),
    ({"dataset__trigger_word": ""}, "[name], red", "learned, red"),
    ({"network__kind": "checkpoint"}, "[name], red", "zork, red"),
    ({"network__kind": "hypernetwork"}, "[name], red", "zork, red"),
    (EMBEDDING, "[name], red", "zrk-a, red"),
    (EMBEDDING, "red", "zrk-a, red"),
    (EMBEDDING | {"embedding__names": "zrk-b, zrk-c"}, "[name], red", "zrk-b zrk-c, red"),
    (EMBEDDING | {"embedding__names": "zrk-b, zrk-c"}, "zrk-c, red", "zrk-b, zrk-c, red"),
]


@pytest.mark.parametrize(("job", "caption", "wanted"), CAPTIONS)
def test_no_name_is_left_in_a_caption(tmp_path: Path, job: dict[str, Any], caption: str, wanted: str) -> None:
    trigger = {"dataset__trigger_word": "zork"} | job
    as_scanned = with_trigger(caption, trigger["dataset__trigger_word"])
    assert made(maker_of(tmp_path, **job), as_scanned) == wanted


TEMPLATES = [
    ("a photo of [name], [filewords]", "red", "a photo of zrk-a, red"),
    ("a photo of [name], [filewords]", "zrk-a, red", "a photo of zrk-a, red"),
    ("a photo of [name], [filewords]", "zrk-abc, red", "a photo of zrk-a, zrk-abc, red"),
    ("a photo of [name], [filewords]", "[name] on a table", "a photo of zrk-a, zrk-a on a table"),
    ("[filewords]", "[name] on a table", "zrk-a on a table"),
    ("[filewords]", "a zrk-a on a table", "a zrk-a on a table"),
    ("[filewords]", "on a table", "zrk-a, on a table"),
    ("a photo, [filewords]", "zrk-a", "a photo, zrk-a"),
    ("[name]", "red", "zrk-a"),
    ("[name] ||| a photo", "red", "zrk-a, a photo"),
    ("a photo of [name], [filewords]", "zrk-ab with zrk-a", "a photo of zrk-a, zrk-ab with zrk-a"),
]


@pytest.mark.parametrize(("template", "caption", "wanted"), TEMPLATES)
def test_every_line_of_a_template_brings_the_name(tmp_path: Path, template: str, caption: str, wanted: str) -> None:
    assert made(maker_of(tmp_path, template, **EMBEDDING), caption) == wanted


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_separator_in_what_stands_around_is_a_comma(tmp_path: Path, shuffle: bool) -> None:
    """sd-scripts' users write `zork |||` into the prefix."""
    around: Any = {"captions__prefix": "[name], art |||", "captions__suffix": "||| good"}
    maker = maker_of(tmp_path, dataset__trigger_word="zork", captions__shuffle=shuffle, **around)
    for step in range(1, 9):
        told = maker.told("zork, red, blue", torch.Generator(), Moment(0, step, 1, 0))
        assert told in ("zork, art, red, blue, good", "zork, art, blue, red, good")


def test_the_scan_leaves_a_caption_with_the_placeholder(tmp_path: Path) -> None:
    assert with_trigger("[name], red", "zork") == "[name], red"
    assert with_trigger("red", "zork") == "zork, red"
