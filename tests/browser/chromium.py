"""The browser of the tests, and what their modules say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for path in (Path("/usr/bin/chromium"), Path("/usr/bin/chromium-browser")) if path.exists()), None
)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP evil.example 127.0.0.1",
]  # fmt: skip
SLOW = 90_000
"""Milliseconds: two busy cores may run the page, the browser and a training."""
MARKS = [
    pytest.mark.browser,
    # uvicorn, stopped in its thread, leaves the browser's kept-alive connections to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)"),
]


def driver() -> Any:
    """playwright's interface, whose expectations are patient; where it is missing the module is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright.expect.set_options(timeout=SLOW)
    return playwright


def launched() -> Iterator[Any]:
    """A browser, which takes seconds to start: tests share it, each with a context of its own."""
    with driver().sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS, timeout=SLOW)
        yield chromium
        chromium.close()
