"""The standalone page's doors in a real browser: what the page of another site reaches there, which is nothing."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from starlette.routing import Route

from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.doors import Doors
from tests.browser.chromium import MARKS, SLOW, close, driver, free_port
from tests.ui.fakes import FakeGenerator, FakeHost

playwright = driver()
pytestmark = MARKS
ATTACK = """async ([server, paths, body]) => {
    const found = [];
    const note = (what, text) => found.push(what + ": " + String(text).slice(0, 60));
    for (const path of paths) {
        for (const mode of ["cors", "no-cors"]) {
            for (const options of [{}, {method: "POST", body, headers: {"Content-Type": "text/plain"}},
                                   {method: "POST", body: new FormData()}, {method: "HEAD"}]) {
                try {
                    const answer = await fetch(server + path, {mode, credentials: "include", ...options});
                    if (answer.type !== "opaque") note(mode + " " + path, answer.status);
                } catch (error) { /* what should happen */ }
            }
        }
        try {
            const answer = await fetch(server + path, {
                method: "POST", body, headers: {"Content-Type": "application/json"}});
            note("json " + path, answer.status);
        } catch (error) { /* what should happen */ }
    }
    await new Promise((done) => {
        const pipe = new WebSocket(server.replace("http", "ws") + "/queue/join");
        pipe.onopen = () => { note("websocket", "open"); done(); };
        pipe.onerror = pipe.onclose = done;
    });
    await new Promise((done) => {
        const image = new Image();
        image.onload = () => { note("image", "loaded"); done(); };
        image.onerror = done;
        image.src = server + "/static/img/logo.svg";
    });
    await new Promise((done) => {
        const frame = document.createElement("iframe");
        frame.onload = () => { setTimeout(done, 300); };
        frame.src = server + "/";
        document.body.append(frame);
    });
    return found;
}"""


@dataclass
class Site:
    app: gr.Blocks
    runner: TrainingDesk
    address: str
    port: int
    pictures: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from lib_trainer.ui.standalone import build_app, serve

    pictures = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (64, 64), "red").save(pictures / "a.png")
    (pictures / "a.txt").write_text("zorb, red", "utf-8")
    runner = TrainingDesk(FakeHost(pictures / "root"))
    app, port = build_app(runner, FakeGenerator(), count_tokens=len), free_port()
    address = serve(app, port=port, block=False).rstrip("/")
    yield Site(app, runner, address, port, pictures)
    close(app)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of another web server."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "index.html").write_text("<!doctype html><title>evil</title><body></body>", "utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def paths(site: Site) -> list[str]:
    """Of every route of the app, and a few files."""
    parts = {"path": "README.md", "path_or_url": "README.md", "url_path": "http://evil.example", "api_name": "predict",
             "session_hash": "a", "run": "1", "component_id": "1"}  # fmt: skip
    found = [f"/file={site.pictures / 'a.png'}"]
    for route in site.app.server_app.routes:
        if isinstance(route, Route):
            path = route.path
            for name in route.param_convertors:
                path = path.replace("{" + name + ":path}", parts[name]).replace("{" + name + "}", parts[name])
            found.append(path)
    return sorted(set(found))


@pytest.mark.parametrize("name", ["evil.example", "localhost", "127.0.0.1"])
def test_a_page_of_another_site_reaches_nothing(
    browser: playwright.Browser, site: Site, evil: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another name, and of another port of this machine."""
    page = browser.new_page()
    page.set_default_timeout(SLOW)
    own, asked = Doors.refusal, list[tuple[str, str]]()

    def refusal(self: Doors, scope: Any) -> str:
        asked.append((str(scope["path"]), own(self, scope)))
        return asked[-1][1]

    monkeypatch.setattr(Doors, "refusal", refusal)
    page.goto(f"http://{name}:{evil}/")
    index = next(i for i, one in enumerate(site.app.dependencies) if one["backend_fn"])
    body = json.dumps({"fn_index": index, "data": [json.dumps({"do": "trash"})], "session_hash": "s"})
    tried = paths(site)
    assert len(tried) > 30
    assert page.evaluate(ATTACK, [site.address, tried, body]) == []
    assert {path for path, _ in asked} >= set(tried) | {"/queue/join"}, "the browser itself has kept something back"
    assert [path for path, refused in asked if not refused] == []
    assert sorted(path.name for path in site.pictures.iterdir()) == ["a.png", "a.txt"]
    assert site.runner.view() is None
    page.context.close()


def test_a_name_that_was_bound_anew_is_not_answered(browser: playwright.Browser, site: Site) -> None:
    """DNS rebinding: the other site's name leads to this machine, and its page would be of the same origin."""
    page = browser.new_page()
    answer = page.goto(f"http://evil.example:{site.port}/")
    assert answer is not None and answer.status == 403
    assert "not known by that name" in page.inner_text("body")
    assert page.evaluate("fetch('/config').then((answer) => answer.status)") == 403
    page.context.close()


def test_a_link_leads_to_the_page_and_the_page_works(browser: playwright.Browser, site: Site, evil: int) -> None:
    """What the tests above would miss if everything were refused."""
    page = browser.new_page()
    page.set_default_timeout(SLOW)
    page.goto(f"http://evil.example:{evil}/")
    page.evaluate("(to) => { const a = document.createElement('a'); a.href = to; a.id = 'a'; a.textContent = 'to'; "
                  "document.body.append(a); }", site.address + "/")  # fmt: skip
    page.click("#a")
    page.wait_for_selector(".trainer-host >> text=SD 1.x")
    assert page.evaluate("fetch('./config').then((answer) => answer.status)") == 200
    page.context.close()
