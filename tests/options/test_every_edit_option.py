"""Every option of the edits of captions and every setting of the Tagger: a value, and what it changes in a caption."""

from __future__ import annotations

from typing import Any

import pytest

from lib_trainer.captions.document import Caption
from lib_trainer.captions.edits import EDITS, Facts, edit_specs, make_edit

FACTS = Facts(counts={"a": 4, "b": 1, "c": 3}, total=4, scores={"a": 0.9, "b": 0.2, "c": 0.3, "d": 0.1})
ROWS: list[tuple[str, str, Any, dict[str, Any], str, str, str]] = [
    # edit, option, value, the others, caption, what comes of it without the option, and with it
    ("add", "tags", "y", {"tags": "x"}, "a", "x, a", "y, a"),
    ("add", "where", "back", {"tags": "x"}, "a", "x, a", "a, x"),
    ("add", "position", 2, {"tags": "x", "where": "position"}, "a, b, c", "a, x, b, c", "a, b, x, c"),
    ("add", "present", "repeat", {"tags": "b"}, "a, b", "a, b", "b, a, b"),
    ("remove", "tags", "b", {"tags": "a"}, "a, b", "b", "a"),
    ("replace", "tags", "b", {"tags": "a", "by": "x"}, "a, b", "x, b", "a, x"),
    ("replace", "by", "y", {"tags": "a", "by": "x"}, "a, b", "x, b", "y, b"),
    ("regex-tags", "expression", "^b$", {"expression": "^a$"}, "a, b", "b", "a"),
    ("regex-tags", "replacement", "x", {"expression": "^a$"}, "a, b", "b", "x, b"),
    ("regex-captions", "expression", "b", {"expression": "a"}, "ab", "b", "a"),
    ("regex-captions", "replacement", "x", {"expression": "a"}, "ab", "b", "xb"),
    ("sort", "by", "alphabet", {}, "c, b, a", "a, c, b", "a, b, c"),
    ("sort", "fixed", 1, {}, "b, c, a", "a, c, b", "b, a, c"),
    ("trigger", "word", "zorb", {"word": "zork"}, "a", "zork, a", "zorb, a"),
    ("trigger", "replaces", "a", {"word": "zork"}, "a, b", "zork, a, b", "zork, b"),
    ("trigger", "separator", True, {"word": "zork"}, "a", "zork, a", "zork ||| a"),
    ("keep-tokens", "count", 2, {}, "a, b, c", "a ||| b, c", "a, b ||| c"),
    ("prune-count", "fewer_than", 4, {}, "a, b, c", "a, c", "a"),
    ("prune-count", "protected", "b", {}, "a, b, c", "a, c", "a, b, c"),
    ("prune-share", "percent", 50.0, {}, "a, b, c", "a, b, c", "a, c"),
    ("prune-share", "side", "above", {"percent": 50.0}, "a, b, c", "a, c", "b"),
    ("prune-share", "protected", "b", {"percent": 50.0}, "a, b, c", "a, c", "a, b, c"),
    ("prune-score", "below", 0.25, {}, "a, b, c", "a", "a, c"),
    ("prune-score", "unscored", True, {}, "a, e", "a, e", "a"),
    ("spelling", "to", "spaces", {}, "long_hair", "long_hair", "long hair"),
]


def test_every_option_of_an_edit_is_in_the_table() -> None:
    named = {(edit, option) for edit, option, *_ in ROWS}
    assert named == {(edit, option) for edit in EDITS for option in edit_specs(edit)}


@pytest.mark.parametrize(
    ("edit", "option", "value", "others", "caption", "before", "after"), ROWS, ids=lambda one: str(one)[:24]
)
def test_an_option_changes_the_caption(
    edit: str, option: str, value: Any, others: dict[str, Any], caption: str, before: str, after: str
) -> None:
    assert value != edit_specs(edit)[option].default
    assert make_edit(edit, others).apply(Caption.parse(caption), FACTS).text == before
    assert make_edit(edit, {**others, option: value}).apply(Caption.parse(caption), FACTS).text == after


def test_numbers_keep_their_bounds_whatever_door_they_come_through() -> None:
    from lib_trainer.refusals import ConfigError

    for edit in EDITS:
        for name, spec in edit_specs(edit).items():
            if spec.low is None:
                continue
            for wrong in (spec.low - 1, str(spec.low - 1), "x", None):
                with pytest.raises(ConfigError, match=rf"{spec.label} = .*: it must be {spec.allowed}\."):
                    make_edit(edit, {name: wrong})
