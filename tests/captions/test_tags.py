"""One tag in all its spellings, and lists of patterns."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_trainer.captions.tags import TagPatterns, escape, split_tags, tag_key, unescape, with_spaces
from lib_trainer.refusals import ConfigError


def test_captions_are_split_at_commas() -> None:
    assert split_tags(" a cat , ,long hair,\n>_<,") == ["a cat", "long hair", ">_<"]


@pytest.mark.parametrize("tag", ["long_hair", "Long Hair", " long  hair ", "LONG_HAIR"])
def test_spellings_of_one_tag(tag: str) -> None:
    assert tag_key(tag) == "long hair"


def test_brackets_escaped_or_not_are_one_tag() -> None:
    assert escape("saber (fate)") == r"saber \(fate\)"
    assert tag_key(r"saber_\(fate\)") == tag_key("saber (fate)") == "saber (fate)"


@given(st.text())
def test_escaping_is_undone(tag: str) -> None:
    assert unescape(escape(tag)) == tag


def test_faces_keep_their_underscore() -> None:
    assert [with_spaces(tag) for tag in (">_<", "^_^", "blue_eyes")] == [">_<", "^_^", "blue eyes"]
    assert tag_key(">_<") != tag_key("> <")


def test_patterns() -> None:
    patterns = TagPatterns.parse("long_hair, * eyes, ?girls\n/^(red|green) (hat|scarf), not this$/, /^sh.rt/, !?")
    wanted = {
        "long hair": True, "Long_Hair": True, "very long hair": False, "blue_eyes": True, "eyes": False,
        "2girls": True, "12girls": False, "short hair": True, "shirt": True, "t-shirt": False, "!?": True, "!a": False,
    }  # fmt: skip
    assert {tag: patterns.matches(tag) for tag in wanted} == wanted
    assert not TagPatterns.parse(" , \n")


def test_a_bracket_in_a_wildcard_is_itself() -> None:
    assert TagPatterns.parse("*[fate]").matches("saber [fate]")
    assert not TagPatterns.parse("*[fate]").matches("saber f")


def test_an_expression_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^Never: /\(/ is not a regular expression .*: correct it\.$"):
        TagPatterns.parse("/(/", "Never")


def test_an_expression_cannot_hang() -> None:
    patterns = TagPatterns.of([r"/(?:.*?){30}\d{3}$/"])
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"^The expression /\(\?:\.\*\?\)\{30\}\\d\{3\}\$/ takes too long"):
        patterns.matches("z" * 80)
    assert time.monotonic() - started < 5
