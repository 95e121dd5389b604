"""Several captions of a picture, with chances: in several files, in several lines, and for the second encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_trainer.captions.document import Caption
from lib_trainer.dataset.caption_files import CaptionRules, caption_files
from lib_trainer.dataset.scan import Sample, scan_folder
from lib_trainer.refusals import ConfigError

MakePicture = Any


def sample(folder: Path, **rules: Any) -> Sample:
    (found,) = scan_folder(folder, trigger_word="zork", repeats=1, captions=CaptionRules(**rules)).samples
    return found


@pytest.fixture
def picture(tmp_path: Path, make_picture: MakePicture) -> Path:
    make_picture("a.png", caption="tags\nmore tags")
    (tmp_path / "a.caption").write_text("A sentence.")
    (tmp_path / "a.LONG").write_text("A long sentence.")
    return tmp_path


def test_files_have_the_chances_that_are_declared(picture: Path) -> None:
    found = sample(picture, files=((".txt", 3.0), (".caption", 1.0), (".nowhere", 9.0)))
    assert found.captions == ("zork, tags, more tags", "zork, A sentence.")
    assert found.chances == (3.0, 1.0), "a file that is not there has none"
    assert found.seconds == ()


def test_a_files_chance_is_shared_by_its_lines(picture: Path) -> None:
    (picture / "a.txt").write_text("0.75:: one\n.25 ::two, three\n\n0:: never")
    found = sample(picture, lines="random", files=((".txt", 1.0), (".caption", 1.0)))
    assert dict(zip(found.captions, found.chances, strict=True)) == {
        "zork, one": 0.75, "zork, two, three": 0.25, "zork, A sentence.": 1.0,
    }  # fmt: skip


def test_lines_without_a_number_have_one_each_and_equal_chances_are_none() -> None:
    assert Caption.parse("a\n2::b\na").alternatives("random") == (("a", 2.0), ("b", 2.0))
    assert Caption.parse("2:: a\nb").alternatives("all") == (("2:: a, b", 1.0),), "chances are of single lines"
    assert Caption.parse("0::a").alternatives("random") == (("", 1.0),)


def test_equal_chances_are_drawn_as_ever(picture: Path) -> None:
    assert sample(picture, lines="random").chances == ()
    assert sample(picture, files=((".txt", 0.5), (".caption", 0.5))).chances == ()


def test_the_second_encoder_is_told_another_file(picture: Path, make_picture: MakePicture) -> None:
    found = sample(picture, second=".long")
    assert found.captions == ("zork, tags, more tags",)
    assert found.seconds == ("zork, A long sentence.",)
    make_picture("b.png", caption="b")
    pair = scan_folder(picture, trigger_word="zork", repeats=1, captions=CaptionRules(second=".long")).samples
    assert [one.seconds for one in pair] == [("zork, A long sentence.",), ()], "who has none is told the same twice"


def test_what_is_read_is_not_told_as_passed_by(picture: Path) -> None:
    def notes(**rules: Any) -> str:
        found = scan_folder(picture, trigger_word="zork", repeats=1, captions=CaptionRules(**rules))
        return " ".join(map(str, found.notes))

    assert "a.caption" in notes()
    assert notes(files=((".txt", 1.0), (".caption", 1.0))) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ((".txt", 1.0),)),
        (".caption", ((".caption", 1.0),)),
        (".txt 0.7, .caption 0.3", ((".txt", 0.7), (".caption", 0.3))),
        (" .txt:2 ,.cap = .5,", ((".txt", 2.0), (".cap", 0.5))),
    ],
)
def test_how_files_are_declared(text: str, expected: Any) -> None:
    assert caption_files(text, "dataset.caption_files") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("txt", "'txt' is no ending with a chance"),
        (".txt much", "no ending with a chance"),
        (".txt 0", "gives '.txt' no chance"),
        (".txt, .TXT 2", "names '.TXT' twice"),
        (".png", "'.png' is an ending of pictures"),
        (".a/b", "no ending of a file"),
    ],
)
def test_what_is_no_declaration_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        caption_files(text, "dataset.caption_files")
    assert said in str(caught.value) and "dataset.caption_files" in str(caught.value)
