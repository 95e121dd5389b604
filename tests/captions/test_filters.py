"""The filter language against pictures whose answers are known."""

from __future__ import annotations

import pytest

from lib_trainer.captions.document import Caption
from lib_trainer.captions.filters import Record, parse_filter
from lib_trainer.refusals import ConfigError

SMILE, HAND, RED = {"smile": 0.9}, {"smile": "hand"}, {"red hair": "wd"}
RECORDS = [
    Record("10_cat/a.png", "10_cat", Caption.parse("long_hair, smile, 1girl"), 10, (512, 768), SMILE, HAND),
    Record("10_cat/b.png", "10_cat", Caption.parse("short hair, 1boy, saber (fate)"), 80, (300, 300), {"smile": 0.1}),
    Record("c.png", "", Caption.parse(""), 0, None, {}, {}, ("empty",)),
    Record("5_dog/d1.png", "5_dog", Caption.parse("red hair, blue eyes, >_<, |_|"), None, (1000, 400), {}, RED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "abcd"),
        ("long hair", "a"),
        ("LONG_HAIR", "a"),
        ("* hair", "abd"),
        ("* hair AND NOT 1boy", "ad"),
        ("* hair, smile", "a"),
        ("smile OR 1boy AND red hair", "a"),
        ("(smile OR 1boy) AND 1girl", "a"),
        ("NOT (smile OR 1boy)", "cd"),
        ("smile | 1boy", "ab"),
        ("!smile & !1boy", "cd"),
        ("-smile", "bcd"),
        ('"saber (fate)"', "b"),
        ("saber_(fate)", "b"),
        (r"saber \(fate\)", "b"),
        ("/^(red|long) hair$/", "ad"),
        (">_<", "d"),
        ("|_|", "d"),
        ("folder:10_*", "ab"),
        ('folder:""', "c"),
        ("name:d*", "d"),
        ("tokens>75", "b"),
        ("tokens <= 10", "ac"),
        ("width<512", "b"),
        ("aspect>2", "d"),
        ("tags=0", "c"),
        ("score(smile)>0.5", "a"),
        ("score(smile)<0.5", "b"),
        ("origin:hand", "ad"),
        ("origin:model", "d"),
        ("trouble:empty", "c"),
        ('caption:"1boy, saber"', "b"),
        ("caption:/^long/", "a"),
        ("smile,", "a"),
        ("group:hair", "ad"),
    ],
)
def test_filter(text: str, found: str) -> None:
    one = parse_filter(text, lambda key: "hair" if key in ("long hair", "red hair") else "other")
    names = ["a", "b", "c", "d"]
    assert "".join(name for name, record in zip(names, RECORDS, strict=True) if one.matches(record)) == found


@pytest.mark.parametrize(
    "text",
    ["(smile", "smile)", "AND smile", "smile OR", "NOT", "foo:bar/(/", "/(/", "score>1", "()", '"open', "(" * 80],
)
def test_what_is_no_filter_is_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^Filter: "):
        parse_filter(text)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match="there is one bracket too many"):
        parse_filter("smile)")
    for text in ("()", "smile AND )", "NOT AND smile"):
        with pytest.raises(ConfigError, match="a tag is missing"):
            parse_filter(text)


def test_a_filter_says_what_it_needs() -> None:
    assert parse_filter("smile").needs == frozenset()
    assert parse_filter("tokens>1 OR (width>1 AND score(a)>0)").needs == {"tokens", "size", "scores"}
    assert parse_filter("trouble:*").needs == {"troubles"}


@pytest.mark.parametrize(
    ("text", "found", "reading"),
    [
        ("slime (substance)", "s", '"slime (substance)" OR (slime AND substance)'),
        ("slime(substance), x", "", '("slime(substance)" OR (slime AND substance)) AND x'),
        ("NOT slime (substance)", "ab", 'NOT ("slime (substance)" OR (slime AND substance))'),
        ("slime (a OR b)", "a", "slime AND (a OR b)"),
        ("-slime (a OR b)", "b", "NOT slime AND (a OR b)"),
        ("NOT NOT (slime)", "a", "NOT NOT slime"),
        ('"slime (substance)"', "s", '"slime (substance)"'),
    ],
)
def test_a_tag_with_brackets_is_found_without_quotes_and_what_was_read_is_said(
    text: str, found: str, reading: str
) -> None:
    records = {"s": "slime (substance)", "a": "slime, a", "b": "b"}
    one = parse_filter(text)
    assert one.reading == reading
    assert "".join(n for n, t in records.items() if one.matches(Record(n, "", Caption.parse(t)))) == found


def test_a_filter_that_finds_nothing_shows_the_quoted_form() -> None:
    assert parse_filter("a, b (c)").misread().text() == (
        'it was read as: a AND ("b (c)" OR (b AND c)); as one tag it is written "a, b (c)", with the quotes'
    )
    assert parse_filter("red").misread().text() == "it was read as: red"
