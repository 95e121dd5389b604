"""Words for counts."""

from __future__ import annotations

import pytest

from lib_trainer.counts import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 captions"), (1, "1 caption"), (2, "2 captions"), (1200, "1,200 captions")]
)
def test_one_is_one(number: int, said: str) -> None:
    assert counted(number, "caption") == said
