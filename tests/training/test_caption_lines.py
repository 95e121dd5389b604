"""`dataset.caption_lines` in whole runs: what the text encoder is given, and that the result is another."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.training.captions import LiveCaptions
from lib_trainer.work import events as ev
from tests.training.watched import Watched

TEXT = "a disc,\n\nred zork\nblue on white\n"
READ = {
    "all": {"a disc, red zork, blue on white"},
    "first": {"zork, a disc,"},
    "random": {"zork, a disc,", "red zork", "zork, blue on white"},
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every caption that a run encodes."""
    captions: list[str] = []
    real = LiveCaptions.texts

    def spy(self: LiveCaptions, texts: Any) -> Any:
        captions.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(LiveCaptions, "texts", spy)
    return captions


@pytest.mark.parametrize("rate", [1e-3, 0])
@pytest.mark.parametrize("lines", ["all", "first", "random"])
def test_what_a_run_reads_of_several_lines(
    watched: Watched, pictures: Path, tmp_path: Path, given: list[str], lines: str, rate: float
) -> None:
    """Encoded at each step, and once beforehand where the text encoder is not trained (rate 0)."""
    folder = shutil.copytree(pictures, tmp_path / "several lines")
    for path in folder.rglob("*.txt"):
        path.write_text(TEXT, encoding="utf-8")
    changes = {"dataset__caption_lines": lines, "dataset__trigger_word": "zork", "training__max_steps": 8}
    view = watched.run(folder, optimizer__text_encoder_lr=rate, **changes)
    assert view.state == "finished", view.error
    read = set(given) - {""}
    assert read == READ[lines]


def test_what_is_not_read_is_told_before_the_run_waits_for_its_turn(
    watched: Watched, pictures: Path, tmp_path: Path
) -> None:
    """Cases 14 and 17 in the trainer: page and command line show these messages."""
    folder = shutil.copytree(pictures, tmp_path / "odd files")
    (folder / "more.heic").write_bytes(b"x")
    first = min(folder.rglob("*.png"))
    first.with_suffix(".txt").rename(first.with_suffix(".caption"))
    assert watched.run(folder, dataset__trigger_word="zork", training__max_steps=1).state == "finished"
    told = [str(event.text) for event in itertools.takewhile(lambda e: not isinstance(e, ev.Phase), watched.events)]
    assert any("1 picture is not read (1 .heic)" in text for text in told)
    assert any(f"not read as a caption: {first.stem}.caption;" in text for text in told)
