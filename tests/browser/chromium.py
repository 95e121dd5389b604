"""The browser of the tests, and what their modules say of themselves."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
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


MORE_FIELDS = """addEventListener('DOMContentLoaded', () => {
    const more = document.createElement('div');
    more.hidden = true;
    more.append(...Array.from({length: 201}, () => document.createElement('input')));
    document.body?.append(more);
})"""
"""Fields that nobody sees. Chromium guesses what a form's fields are for, anew with every change and whatever its
settings say; for our page that takes a quarter of the processor's time. Where there are more than 200 it does not."""


def launched(profile: Path) -> Iterator[Any]:
    """A browser's context, which takes seconds to start: all tests here share it. `profile` is an empty folder."""
    with driver().sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            str(profile), executable_path=str(CHROMIUM), args=ARGUMENTS, timeout=SLOW
        )
        context.add_init_script(MORE_FIELDS)
        yield context
        context.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def close(app: Any) -> None:
    """Ends a page's server at once, and not when the browser has given up the last connection that it keeps."""
    app.server.force_exit = True
    app.close()


def open_tab(page: Any, label: str) -> None:
    page.locator(".tab-nav button:visible").filter(has_text=re.compile(rf"^\s*{label}\s*$")).first.click()


def write_in(page: Any, element: str, value: object) -> None:
    """As somebody who types and goes on to the next field."""
    box = page.locator(f"#{element}").locator("textarea, input:not([type=range])").first
    box.fill(str(value))
    box.press("Tab")


def later(page: Any, milliseconds: int) -> None:
    """As if so much time had passed by the clock of `bridge.js`, which has ticked since."""
    page.evaluate(
        """(milliseconds) => {
            const now = Date.now;
            Date.now = () => now() + milliseconds;
            return new Promise((done) => setTimeout(done, 150));
        }""",
        milliseconds,
    )


@dataclass
class Tab:
    """A page that one test after the other has, each with a server of its own at the same `port`.

    gradio's scripts are then compiled already: a load takes a third of the processor's time of one in a new page. What
    a test may change beside the document is put back by `open` and `leave`: the window's size, the speed.
    """

    raw: Any
    port: int
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.raw.set_default_timeout(SLOW)
        self.raw.on("pageerror", lambda error: self.errors.append(str(error)))
        self.raw.on("request", lambda request: self.requests.append(request.url))
        self.raw.on("response", lambda response: self.answers.append(response.url))
        self._speed = self.raw.context.new_cdp_session(self.raw)
        self._speed.send("Network.enable")

    def open(self, address: str, width: int, height: int) -> Any:
        self.raw.set_viewport_size({"width": width, "height": height})
        self.raw.goto(address)
        return self.raw

    def slow_down(self, rate: int) -> None:
        """As on a machine so many times slower. The browser passes the time by computing, which costs as much."""
        self._speed.send("Emulation.setCPUThrottlingRate", {"rate": rate})

    def delay_answers(self, milliseconds: int) -> None:
        """As from a slow server, at no cost."""
        none = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        self._speed.send("Network.emulateNetworkConditions", none | {"latency": milliseconds})

    def leave(self, address: str = "") -> list[str]:
        """The page's errors; while the server is still there, without which it would make more."""
        self.slow_down(1)
        self.delay_answers(0)
        self.raw.goto(f"{address.rstrip('/')}/nothing" if address else "about:blank")
        self.requests.clear()
        self.answers.clear()
        errors = self.errors[:]
        self.errors.clear()
        return errors


@contextlib.contextmanager
def served(tab: Tab, app: Any, *desks: Any) -> Iterator[str]:
    """A page's address while it is served. Its scripts must not have failed; the jobs of `desks` end with it."""
    from lib_trainer.ui.standalone import serve

    address = serve(app, port=tab.port, block=False)
    yield address
    errors = tab.leave(address)
    for desk in desks:
        desk.stop()
        desk.wait(20)
    close(app)
    assert errors == []
