"""A browser for all of these files. gradio's own imports warn of deprecations that are none of ours: let through here.

A package's and not the session's: its driver keeps an event loop in this thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.chromium import Tab, free_port, launched

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import gradio as gradio


@pytest.fixture(scope="package")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from launched(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="package")
def browser(context: Any) -> Any:
    """For pages that share nothing with those of `context`."""
    return context.browser


@pytest.fixture(scope="package")
def tab(context: Any) -> Tab:
    return Tab(context.pages[0], free_port())


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of another tab: each change, and each look of axe, costs for every element of the form of training."""
    monkeypatch.setattr("lib_trainer.ui.standalone.build_train_page", lambda desk, options: None)
