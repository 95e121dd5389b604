"""The standalone page's doors, tried by an HTTP client against every route of the served app."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route, WebSocketRoute

from lib_trainer.origins import foreign_page, host_name, is_loopback, names_of, same_origin
from lib_trainer.refusals import ConfigError
from lib_trainer.training import desk as training_desk
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.doors import check_password
from tests.ui.fakes import FakeGenerator, FakeHost, Script

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
EVIL = "https://evil.example"
PARTS = {"path": "style.css", "path_or_url": "style.css", "url_path": EVIL, "api_name": "predict",
         "session_hash": "a", "run": "1", "component_id": "1"}  # fmt: skip
"""What stands for the parts of a route's path. A route with another part must be thought about first."""
OPEN = frozenset({
    "/user", "/user/", "/login_check", "/login_check/", "/token", "/token/", "/app_id", "/app_id/", "/login", "/login/",
    "/", "/info/", "/info", "/config/", "/config", "/static/{path:path}", "/assets/{path:path}", "/favicon.ico",
    "/proxy={url_path:path}", "/file={path_or_url:path}", "/stream/{session_hash}/{run}/{component_id}",
    "/file/{path:path}", "/reset/", "/reset", "/run/{api_name}", "/run/{api_name}/", "/api/{api_name}",
    "/api/{api_name}/", "/queue/join", "/queue/status", "/upload", "/startup-events", "/theme.css", "/robots.txt",
    "/openapi.json",
})  # fmt: skip
"""The routes that gradio 3.41.2 is known to have. Another one must be thought about first."""


@dataclass
class Site:
    app: gr.Blocks
    runner: TrainingDesk
    port: int
    folder: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: str = "") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = {"Host": self.host}
            if body:
                sent |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in (sent | (headers or {})).items():
                connection.putheader(name, value)
            connection.endheaders(body.encode())
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def dependency(self, element: str) -> int:
        """The number of what a button's click calls."""
        block = next(number for number, one in self.app.blocks.items() if one.elem_id == element)
        return next(
            number
            for number, one in enumerate(self.app.dependencies)
            if one["backend_fn"] and one["trigger"] == "click" and block in one["targets"]
        )

    def event(self, element: str, data: list[Any], headers: dict[str, str] | None = None) -> Answer:
        """What the page sends when a button is pressed."""
        index = self.dependency(element)
        body = json.dumps({"fn_index": index, "data": data, "session_hash": "s"})
        return self.ask("POST", "/run/predict", headers, body)

    def websocket(self, headers: dict[str, str]) -> int:
        """The status of the handshake on /queue/join."""
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        return self.ask("GET", "/queue/join", {**upgrade, "Sec-WebSocket-Key": key, **headers}).status


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from lib_trainer.ui.standalone import build_app, serve

    script, patch = Script(step_seconds=0.01, cache_seconds=0), pytest.MonkeyPatch()
    patch.setattr(training_desk, "prepare", script.prepare)
    patch.setattr(training_desk, "run_plan", script.run_plan)
    folder = tmp_path_factory.mktemp("set")
    runner = TrainingDesk(FakeHost(folder / "root"))
    app = build_app(runner, FakeGenerator(), count_tokens=len)
    port = free_port()
    serve(app, port=port, block=False)
    yield Site(app, runner, port, folder)
    runner.stop()
    runner.wait(10)
    app.close()
    patch.undo()


def asked(site: Site) -> list[tuple[str, str, str]]:
    """(method, path, route) of every HTTP route of the app. Fails for a route that is none of the known ones."""
    found = []
    for route in site.app.server_app.routes:
        assert not isinstance(route, Mount), f"{route.path}: what is mounted must be tried too"
        assert route.path in OPEN, f"{route.path} is new: say what it gives to whom, and put it into OPEN"
        if isinstance(route, Route):
            path = route.path
            for name in route.param_convertors:
                path = path.replace("{" + name + ":path}", PARTS[name]).replace("{" + name + "}", PARTS[name])
            found += [(method, path, route.path) for method in sorted(route.methods or ())]
        else:
            assert isinstance(route, WebSocketRoute) and route.path == "/queue/join"
    return found


FOREIGN = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Host": "evil.example"},
    {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_no_route_answers_a_foreign_origin_or_host(site: Site, headers: dict[str, str]) -> None:
    routes = asked(site)
    assert len(routes) > 30
    for method, path, route in [*routes, ("OPTIONS", "/run/predict", "preflight"), ("GET", "/none", "none")]:
        answer = site.ask(method, path, {**headers, "Access-Control-Request-Method": "POST"}, "{}")
        assert answer.status == 403, (route, answer)
        assert not any(name.lower().startswith("access-control") for name in answer.headers), route
    assert site.websocket(headers) == 403


def test_the_pages_own_requests_are_answered(site: Site) -> None:
    """What the test above would miss if everything were refused."""
    for name in ("127.0.0.1", "localhost", "[::1]"):
        own = {"Host": f"{name}:{site.port}", "Origin": f"http://{name}:{site.port}", "Sec-Fetch-Site": "same-origin"}
        assert site.ask("GET", "/config", own).status == 200
        assert site.websocket(own) == 101
    assert site.ask("GET", "/config").status == 200, "a program that is no browser"
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = site.ask("GET", "/", visit)
    assert answer.status == 200, "a link on another site leads to the page"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert site.ask("GET", "/", visit | {"Sec-Fetch-Dest": "iframe"}).status == 403
    assert site.ask("GET", "/config", visit).status == 403
    assert not any(one.cls is CORSMiddleware for one in site.app.server_app.user_middleware)


def make_set(folder: Path) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(pictures / "a.png")
    (pictures / "a.txt").write_text("zorb, red", "utf-8")
    return pictures


def test_a_foreign_page_opens_moves_and_starts_nothing(site: Site) -> None:
    pictures = make_set(site.folder)
    own = {"Origin": f"http://{site.host}"}
    opening, trash = ([json.dumps(c)] for c in ({"do": "open", "folder": str(pictures)}, {"do": "trash"}))
    page = [one for one in site.app.blocks.values() if one.elem_id == "trainer_start"]
    assert page
    start = [component.postprocess(component.value) for component in form_of(site)]
    for headers in ({"Origin": EVIL}, {"Host": "evil.example"}):
        for element, data in (("dataset_command", opening), ("dataset_command", trash), ("trainer_start", start)):
            answer = site.event(element, data, headers)
            assert answer.status == 403 and b"data" not in answer.body
    assert sorted(path.name for path in pictures.iterdir()) == ["a.png", "a.txt"]
    assert site.runner.view() is None
    assert b"picture is open" in site.event("dataset_command", opening, own).body, "the page itself can"
    assert b"trainer-notice-error" in site.event("trainer_start", start, own).body


def form_of(site: Site) -> list[Any]:
    inputs = site.app.dependencies[site.dependency("trainer_start")]["inputs"]
    return [site.app.blocks[number] for number in inputs]


def test_files_of_the_working_directory_are_not_served(site: Site, tmp_path: Path) -> None:
    readme = Path.cwd() / "README.md"
    assert readme.is_file()
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for name in ("README.md", "./README.md", str(readme), str(secret), "/etc/hostname", "lib_trainer/../README.md",
                 "%2e/README.md", "https://evil.example/", "\0"):  # fmt: skip
        for prefix in ("/file=", "/file/"):
            quoted = name.replace("\0", "%00")
            assert site.ask("GET", prefix + quoted).status in (403, 400), name
            assert site.ask("HEAD", "/file=" + quoted).status in (403, 400)


def test_what_was_uploaded_is_served_and_lies_in_a_folder_of_its_own(site: Site) -> None:
    body = '--b\r\nContent-Disposition: form-data; name="files"; filename="job.toml"\r\n\r\nversion = 1\r\n--b--\r\n'
    sent = {"Content-Type": "multipart/form-data; boundary=b"}
    assert site.ask("POST", "/upload", sent | {"Origin": EVIL}, body).status == 403
    uploads = Path(site.app.server_app.uploaded_file_dir)
    assert list(uploads.iterdir()) == []
    answer = site.ask("POST", "/upload", sent, body)
    (name,) = json.loads(answer.body)
    assert uploads in Path(name).parents
    assert site.ask("GET", f"/file={name}").body == b"version = 1"


def test_what_a_component_shows_is_served_also_from_a_linked_folder(site: Site, tmp_path: Path) -> None:
    """macOS' own folder for temporary files is a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"picture")
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    except OSError:
        pytest.skip("links need a right that this user lacks")
    shown = tmp_path / "link" / "a.png"
    assert site.ask("GET", f"/file={shown}").status == 403
    site.app.temp_file_sets.append({str(shown)})
    try:
        assert site.ask("GET", f"/file={shown}").body == b"picture"
    finally:
        site.app.temp_file_sets.pop()


def test_a_link_among_the_uploads_leads_nowhere(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = Path(site.app.server_app.uploaded_file_dir) / "link.txt"
    try:
        link.symlink_to(secret)
    except OSError:
        pytest.skip("links need a right that this user lacks")
    assert site.ask("GET", f"/file={link}").status == 403
    link.unlink()


def test_another_address_asks_for_a_password(tmp_path: Path) -> None:
    from lib_trainer.ui.standalone import build_app, serve

    with pytest.raises(ConfigError, match="--password"):
        serve(build_app(TrainingDesk(FakeHost(tmp_path)), FakeGenerator()), "0.0.0.0", free_port(), block=False)
    with pytest.raises(ConfigError, match="at least 8"):
        check_password("127.0.0.1", "short")
    app, port = build_app(TrainingDesk(FakeHost(tmp_path)), FakeGenerator()), free_port()
    serve(app, "0.0.0.0", port, block=False, password="correct horse")
    site = Site(app, TrainingDesk(FakeHost(tmp_path)), port, tmp_path)
    try:
        assert json.loads(site.ask("GET", "/config").body).get("detail") == "Not authenticated"
        assert site.event("trainer_poll", ["{}", ""]).status == 401
        assert site.ask("GET", "/config", {"Host": "evil.example"}).status == 403
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{site.host}"}
        assert site.ask("POST", "/login", form, "username=me&password=wrong+horse").status == 400
        answer = site.ask("POST", "/login", form, "username=me&password=correct+horse")
        assert answer.status == 200
        cookie = answer.headers["set-cookie"].split(";")[0].replace("access-token=", "access-token-unsecure=")
        assert site.ask("GET", "/config", {"Cookie": cookie.replace("-unsecure-unsecure", "-unsecure")}).status == 200
        assert site.ask("GET", "/config", {"Cookie": cookie, "Origin": EVIL}).status == 403
    finally:
        app.close()


def test_origins_and_hosts_are_told_apart() -> None:
    assert same_origin("http://127.0.0.1:7861", "127.0.0.1:7861")
    assert same_origin("http://localhost", "localhost:80") and same_origin("https://me.example", "me.example:443")
    assert same_origin("http://[::1]:7861", "[::1]:7861")
    for origin in ("http://127.0.0.1:7862", "http://localhost:7861", "null", "", "file://", "http://127.0.0.1:x",
                   "http://127.0.0.1:7861@evil.example"):  # fmt: skip
        assert not same_origin(origin, "127.0.0.1:7861"), origin
    assert host_name("[::1]:7861") == "::1" and host_name("Localhost:1") == "localhost" and host_name("[") == ""
    assert is_loopback("127.9.9.9") and is_loopback("[::1]") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("my-machine")
    assert "my-machine" in names_of("my-machine") and "evil.example" not in names_of("0.0.0.0")
    assert foreign_page([(b"host", b"a"), (b"host", b"b")]) and not foreign_page([(b"host", b"a")])
