"""Every edit on captions whose result was written down beforehand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lib_trainer.captions.document import Caption
from lib_trainer.captions.edits import EDITS, Facts, count_tags, edit_specs, make_edit
from lib_trainer.refusals import ConfigError

FACTS = Facts(
    counts={"a": 4, "b": 1, "c": 3, "long hair": 2},
    total=4,
    scores={"a": 0.9, "b": 0.2, "c": 0.3},
    by_hand=frozenset({"c"}),
)
EXPECTED: list[tuple[str, dict[str, Any], str, str]] = [
    ("add", {"tags": "x, y"}, "a, b", "x, y, a, b"),
    ("add", {"tags": "x", "where": "back"}, "a, b\n", "a, b, x\n"),
    ("add", {"tags": "x", "where": "position", "position": 1}, "a, b", "a, x, b"),
    ("add", {"tags": "B, x"}, "a, b", "x, a, b"),
    ("add", {"tags": "b", "present": "move"}, "a, b", "b, a"),
    ("add", {"tags": "b", "present": "repeat"}, "a, b", "b, a, b"),
    ("remove", {"tags": "long hair, b*"}, "a, Long_Hair, bb, c", "a, c"),
    ("remove", {"tags": "/^[ab]$/"}, "a, b, ab", "ab"),
    ("replace", {"tags": "a", "by": "x"}, "a, b", "x, b"),
    ("replace", {"tags": "a, b", "by": "x"}, "a, b, c", "x, c"),
    ("replace", {"tags": "a", "by": "c"}, "a, b, c", "b, c"),
    ("replace", {"tags": "a", "by": "x, y"}, "a;b, a, b", "a;b, x, y, b"),
    ("replace", {"tags": "* hair", "by": "hair"}, "red hair, b,long hair", "hair, b"),
    ("regex-tags", {"expression": r"^(\w+) hair$", "replacement": r"\1-haired"}, "red hair, b", "red-haired, b"),
    ("regex-tags", {"expression": "^b$"}, "a, b, c", "a, c"),
    ("regex-tags", {"expression": " and ", "replacement": ", "}, "a and b, c", "a, b, c"),
    ("regex-captions", {"expression": r"\n", "replacement": ", "}, "a\nb", "a, b"),
    ("dedupe", {}, "long hair, a, Long_hair, a,b", "long hair, a, b"),
    ("sort", {"by": "alphabet"}, "c, a, b", "a, b, c"),
    ("sort", {"by": "frequency"}, "b, c, a", "a, c, b"),
    ("sort", {"by": "score"}, "b, c, a", "a, c, b"),
    ("sort", {"by": "alphabet", "fixed": 1}, "z, c, b", "z, b, c"),
    ("sort", {"by": "alphabet"}, "z ||| c, b", "z ||| b, c"),
    ("trigger", {"word": "zorb"}, "a, b", "zorb, a, b"),
    ("trigger", {"word": "zorb"}, "a, zorb, b", "zorb, a, b"),
    ("trigger", {"word": "zorb", "replaces": "old"}, "old, a", "zorb, a"),
    ("trigger", {"word": "zorb", "separator": True}, "a, b", "zorb ||| a, b"),
    ("trigger", {"word": "zorb", "replaces": "old"}, "old ||| a, b", "zorb ||| a, b"),
    ("trigger", {"word": "zorb"}, "", "zorb"),
    ("keep-tokens", {"count": 2}, "a, b, c", "a, b ||| c"),
    ("keep-tokens", {"count": 0}, "a ||| b", "a, b"),
    ("prune-count", {"fewer_than": 2}, "a, b, c", "a, c"),
    ("prune-count", {"fewer_than": 2, "protected": "b"}, "a, b, c", "a, b, c"),
    ("prune-share", {"percent": 50}, "a, b, c", "a, c"),
    ("prune-share", {"percent": 75, "side": "above"}, "a, b, c", "b"),
    ("prune-score", {"below": 0.35}, "a, b, c, unknown", "a, c, unknown"),
    ("spelling", {"to": "escaped"}, r"saber (fate), x \(y\)", r"saber \(fate\), x \(y\)"),
    ("spelling", {"to": "unescaped"}, r"saber \(fate\)", "saber (fate)"),
    ("spelling", {"to": "spaces"}, "long_hair, >_<", "long hair, >_<"),
    ("spelling", {"to": "underscores"}, "long hair", "long_hair"),
    ("prompt-only", {}, "a, b\nNegative prompt: c, d\nSteps: 20, Sampler: Euler a, Seed: 1\n", "a, b\n"),
    ("prompt-only", {}, "a,\r\nb\r\nSteps: 20, Sampler: Euler a\r\n", "a,\r\nb\r\n"),
    ("prompt-only", {}, "a, <lora:x_1:0.8>, c <hypernet:y:1> d", "a, c d"),
    ("prompt-only", {}, "Negative prompt: of a sign", "Negative prompt: of a sign"),
    ("prompt-only", {}, "a, Steps: 20, b\n", "a, Steps: 20, b\n"),
    ("plain-commas", {}, "zorb，红发、蓝眼", "zorb, 红发, 蓝眼"),
    ("plain-commas", {}, "a ， b；\r\nc,\n", "a, b,\r\nc,\n"),
    ("plain-commas", {}, "a,b\n", "a,b\n"),
]


@pytest.mark.parametrize(("name", "values", "before", "after"), EXPECTED)
def test_edit(name: str, values: dict[str, Any], before: str, after: str) -> None:
    edit = make_edit(name, values)
    assert edit.apply(Caption.parse(before), FACTS).text == after
    assert edit.label()


def test_an_edit_of_the_whole_text_leaves_the_mark_of_the_byte_order() -> None:
    edit = make_edit("regex-captions", {"expression": "a", "replacement": "b"})
    assert edit.apply(Caption.parse("a", True), FACTS) == Caption.parse("b", True)


def test_every_edit_is_tried_above_and_has_a_form() -> None:
    assert {name for name, *_ in EXPECTED} == set(EDITS)
    for name, kind in EDITS.items():
        assert kind.__doc__
        assert all(one.label and one.help for one in edit_specs(name).values())


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("add", {}, "Tags is empty: write one or more tags, separated by commas."),
        ("remove", {}, "Tags is empty: write one or more tags, separated by commas."),
        ("replace", {"tags": "a"}, "By is empty: write one or more tags, separated by commas."),
        ("remove", {"tags": "/(/"}, "Tags: /(/ is not a regular expression"),
        ("regex-tags", {"expression": "["}, "Expression: /[/ is not a regular expression"),
        ("regex-tags", {"expression": "a", "replacement": r"\3"}, "Replacement: there is no group 3 in /a/."),
        ("add", {"tags": "a|||b"}, "Tags holds the keep-token separator |||: use the edit for it."),
        ("prune-share", {"percent": 101}, "Percent = 101: it must be a number from 0 to 100."),
        ("prune-score", {"below": "x"}, "Below = 'x': it must be a number from 0 to 1."),
        ("sort", {"by": "colour"}, "By = 'colour': it must be one of alphabet, frequency, score."),
        ("sort", {"wrong": 1}, "The edit 'sort' has no field 'wrong': it has by, fixed."),
        ("vanish", {}, "There is no edit 'vanish'"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(name: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_edit(name, values)
    assert sentence in str(caught.value)


def test_what_is_empty_is_told_beside_its_field() -> None:
    with pytest.raises(ConfigError) as caught:
        make_edit("remove", {})
    assert caught.value.field == "tags"


def test_an_addition_says_where() -> None:
    for where, place in (("front", "the front"), ("back", "the back"), ("position", "position 2")):
        assert make_edit("add", {"tags": "x", "where": where, "position": 2}).label() == f"Add x at {place}"


def test_an_expression_cannot_hang() -> None:
    edit = make_edit("regex-tags", {"expression": "^(a|aa)+$", "replacement": "x"})
    started = time.monotonic()
    with pytest.raises(ConfigError, match="takes too long: simplify it"):
        edit.apply(Caption.parse("a" * 50 + "c"), FACTS)
    assert time.monotonic() - started < 60


def test_a_tag_counts_once_a_caption() -> None:
    assert count_tags([Caption.parse("a, a, B_c"), Caption.parse("b c")]) == {"a": 1, "b c": 2}
