"""Captions as tags and gaps: nothing is lost, and an edit touches what it names."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib_trainer.captions.document import Caption, CaptionError, guess_encoding, read_document
from lib_trainer.refusals import DatasetError

PIECES = st.sampled_from(
    ["a", "long hair", "saber (fate)", ",", ", ", "\n", "\r\n", "\r", "|||", " ", "\t", "\u3000", "|_|"]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=30))


@given(TEXTS, st.booleans())
@example("a , b", False)
def test_bytes_come_back(text: str, bom: bool) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "ignore")
    caption = Caption.read(data)
    assert caption.encode() == data
    assert len(caption.gaps) == len(caption.tags) + 1
    assert all(tag == tag.strip() and tag and "," not in tag and "|||" not in tag for tag in caption.tags)


@given(TEXTS)
def test_both_ways_of_splitting_agree(text: str) -> None:
    assert Caption.parse(text) == Caption._parse_slowly(text, False)


@pytest.mark.parametrize(
    ("text", "gone", "left"),
    [
        ("a, b, c", "b", "a, c"),
        ("a, b, c", "a", "b, c"),
        ("a, b, c\n", "c", "a, b\n"),
        ("a,b,c,", "c", "a,b,"),
        ("a\nb\nc\n", "b", "a\nc\n"),
        ("a, b,\r\nc", "b", "a,\r\nc"),
        ("a ||| b, c", "b", "a ||| c"),
        ("a, b ||| c", "b", "a ||| c"),
        (" a \n", "a", "  \n"),
    ],
)
def test_a_tag_is_removed_with_one_gap(text: str, gone: str, left: str) -> None:
    assert Caption.parse(text).remove(lambda tag: tag == gone).text == left


@pytest.mark.parametrize(
    ("text", "place", "result"),
    [
        ("a, b", 0, "x, a, b"),
        ("a, b", 1, "a, x, b"),
        ("a, b\n", 9, "a, b, x\n"),
        ("a,b", 1, "a,x,b"),
        ("a\nb\n", 2, "a\nb\nx\n"),
        ("", 0, "x"),
        ("\r\n", 0, "x\r\n"),
        ("a ||| b", 1, "a ||| x, b"),
    ],
)
def test_a_tag_is_put_in_with_the_files_own_separator(text: str, place: int, result: str) -> None:
    assert Caption.parse(text).insert(place, ["x"]).text == result


def test_the_keep_token_separator_is_moved_and_taken_out() -> None:
    caption = Caption.parse("a, b, c")
    assert caption.keep(1).text == "a ||| b, c"
    assert caption.keep(1).keep(2).text == "a, b ||| c"
    assert caption.keep(1).keep(0).text == "a, b, c"
    assert caption.keep(1).kept == 1
    assert caption.kept == 0


@given(st.lists(st.sampled_from(["a", "b c", "d_e"]), max_size=6), st.data())
def test_removing_what_was_put_in_gives_the_tags_back(tags: list[str], data: st.DataObject) -> None:
    caption = Caption.parse(", ".join(tags))
    place = data.draw(st.integers(0, len(tags)))
    with_it = caption.insert(place, ["new"])
    assert with_it.tags == (*tags[:place], "new", *tags[place:])
    assert with_it.remove(lambda tag: tag == "new").tags == caption.tags


@given(TEXTS)
@example("||||_|")
def test_a_caption_is_its_head_and_its_body(text: str) -> None:
    head, body = Caption.parse(text, True).parts()
    assert (body.bom and (head + body.text).rstrip(" ") == text.rstrip(" ")) or not body.tags
    assert head == "" or head.endswith("|||")
    assert "|||" not in body.text and Caption.parse(head).tags + body.tags == Caption.parse(text).tags


def test_a_keep_token_separator_at_an_end_leaves_no_comma() -> None:
    assert Caption.parse("||| a, b |||").trained() == ("a, b",)
    assert Caption.parse("||| a, b |||").trained("first") == ("a, b",)


def test_nobody_else_knows_what_a_caption_file_is_made_of() -> None:
    """One reader and one writer: its mark of the byte order, its encoding, its keep-token separator."""
    package = Path(__file__).parents[2] / "lib_trainer"
    told = re.compile(r"BOM_UTF8|guess_encoding|[\"']\|\|\|[\"']")
    users = {path.name for path in package.rglob("*.py") if told.search(path.read_text("utf-8"))}
    assert users == {"document.py"}


def test_other_encodings_are_guessed_and_named() -> None:
    japanese, chinese, german = "ロングヘア, 青い目", "长发, 蓝眼睛", "Mädchen, grüne Augen"
    assert guess_encoding(japanese.encode("shift_jis")) == "shift_jis"
    assert guess_encoding(chinese.encode("gbk")) == "gb18030"
    assert guess_encoding(german.encode("cp1252")) == "cp1252"
    assert guess_encoding("a, b".encode("utf-16")) == "utf-16"
    assert guess_encoding(b"\x00\x01\x02\xff") == ""
    with pytest.raises(CaptionError, match=r"not UTF-8 text: it reads as cp1252, and can be converted\.$"):
        Caption.read(german.encode("cp1252"))
    assert guess_encoding(codecs.BOM_UTF16_BE + "a, b".encode("utf-16-be")) == "utf-16"


def test_a_caption_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^The caption '.*none\.txt' is gone\.$"):
        read_document(tmp_path / "none.txt")
    with pytest.raises(
        DatasetError, match=rf"^The caption '{re.escape(str(tmp_path))}' cannot be read \(.*directory\)"
    ):
        read_document(tmp_path)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Mädchen".encode("cp1252"))
    with pytest.raises(CaptionError, match=r"latin\.txt' is not UTF-8 text"):
        read_document(latin)
