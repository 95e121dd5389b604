"""Words for counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_trainer.counts import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 captions"), (1, "1 caption"), (2, "2 captions"), (1200, "1,200 captions")]
)
def test_one_is_one(number: int, said: str) -> None:
    assert counted(number, "caption") == said


def test_what_is_said_of_many_is_not_said_of_one() -> None:
    """A number before a word in the plural; behind "of" it is a whole, and "1 of 1 captions" is right."""
    words = "captions|days|epochs|files|kinds|layers|models|pictures|steps|tags|tensors"
    told = re.compile(rf"(?<!of )\{{[^{{}}]+\}}(?:</b>)? (?:encoded )?(?:{words})\b(?!/)")
    for path in (Path(__file__).parents[1] / "lib_trainer").rglob("*.py"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            assert not told.search(line), f"{path}:{number}: {line.strip()}: `counted` says one of one"
