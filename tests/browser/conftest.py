"""A browser for each file. gradio's own imports warn of deprecations that are none of ours: let through once, here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.chromium import launched

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import gradio as gradio


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for a file's tests and not for the session: its driver keeps an event loop in this thread."""
    yield from launched()
