"""Captions as the WebUI and other keyboards write them, in training and in the check."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_trainer.captions.document import Caption
from lib_trainer.captions.edits import make_edit
from lib_trainer.captions.knowledge import built_in
from lib_trainer.captions.tokens import TokenCounter
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.report import make_report
from lib_trainer.dataset.scan import scan_folder, with_trigger

WEBUI = "a photo of zorb,\nred\nNegative prompt: lowres, bad\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {"a": WEBUI, "b": "zorb，红发、蓝眼", "c": "plain, tags"}.items():
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_prompt_alone_is_trained_and_said_so(root: Path) -> None:
    """Case 15."""
    scan = scan_folder(root, trigger_word="", repeats=1)
    assert [sample.caption for sample in scan.samples] == ["a photo of zorb, red", "zorb，红发、蓝眼", "plain, tags"]
    assert len(scan.notes) == 2
    assert "1 caption holds the WebUI's settings" in str(scan.notes[0]) and "(a.txt)" in str(scan.notes[0])
    assert "full-width commas" in str(scan.notes[1]) and "(b.txt)" in str(scan.notes[1])


def test_the_check_finds_both_and_the_edits_mend_them(root: Path) -> None:
    """Cases 15 and 16."""
    editor = Editor(root)
    report = make_report(editor, {}, TokenCounter(len), built_in())
    found = {one.kind: one for one in report.findings}
    assert (found["settings"].pictures, found["settings"].remedy) == (("a.png",), "prompt-only")
    assert (found["commas"].pictures, found["commas"].remedy) == (("b.png",), "plain-commas")
    for kind in ("settings", "commas"):
        editor.apply(editor.preview(make_edit(found[kind].remedy, {}), list(found[kind].pictures)))
    assert (root / "a.txt").read_text("utf-8") == "a photo of zorb,\nred"
    assert (root / "b.txt").read_text("utf-8") == "zorb, 红发, 蓝眼"
    assert scan_folder(root, trigger_word="", repeats=1).notes == ()
    editor.undo()
    editor.undo()
    assert (root / "a.txt").read_text("utf-8") == WEBUI


@pytest.mark.parametrize(
    "text", ["negative prompt: x", "Steps: 20 of stairs", "a, Negative prompt: b", "Steps: 3, wood"]
)
def test_what_only_looks_like_settings_is_trained(text: str) -> None:
    assert Caption.parse(text).trained() == (text,)


@pytest.mark.parametrize(
    ("text", "every", "first", "random"),
    [
        ("a, b\nc d\n", "a, b, c d", "a, b", ("a, b", "c d")),
        ("\r\n one. \r\n\r\ntwo\r\n", "one. two", "one.", ("one.", "two")),
        ("a ||| b\nc", "a, b, c", "a, b", ("a, b", "c")),
        ("same\nsame", "same, same", "same", ("same",)),
        ("", "", "", ("",)),
        ("\n \n", "", "", ("",)),
    ],
)
def test_what_training_makes_of_several_lines(text: str, every: str, first: str, random: tuple[str, ...]) -> None:
    caption = Caption.parse(text)
    assert caption.trained() == caption.trained("all") == (every,)
    assert caption.trained("first") == (first,)
    assert caption.trained("random") == random


@pytest.mark.parametrize("trigger", ["saber (fate)", r"saber \(fate\)"])
@pytest.mark.parametrize("caption", ["saber (fate), a", r"saber \(fate\), a"])
def test_a_trigger_word_is_not_put_beside_its_other_spelling(trigger: str, caption: str) -> None:
    """Case 10, in the trainer."""
    assert with_trigger(caption, trigger) == caption


def test_tokens_are_counted_of_what_is_trained() -> None:
    count = TokenCounter(len)
    for text in (WEBUI, "zorb ||| red, blue", "a.\nb,\r\n\nc", "one, two"):
        (trained,) = Caption.parse(text).trained()
        assert count(Caption.parse(text)) == sum(map(len, trained.split()))
