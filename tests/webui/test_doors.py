"""What the page of another web site reaches of ours in the real WebUI."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.webui.server import Values, Webui

EVIL = "https://evil.example"


def ask(webui: Webui, method: str, path: str, body: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
    address = urlsplit(webui.address)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def joined(webui: Webui, origin: str) -> Iterator[tuple[socket.socket, Any]]:
    """The WebSocket of gradio's queue as a page of that origin opens it, and the stream of what comes."""
    address = urlsplit(webui.address)
    with socket.create_connection((str(address.hostname), address.port or 80), timeout=20) as raw:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET /queue/join HTTP/1.1", f"Host: {address.netloc}", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", f"Origin: {origin}", "", "",
        ]  # fmt: skip
        raw.sendall("\r\n".join(lines).encode())
        stream = raw.makefile("rb")
        assert b" 101 " in stream.readline()
        while stream.readline().strip():
            pass
        yield raw, stream


def call(webui: Webui, number: int, data: list[Any], origin: str) -> list[dict[str, Any]]:
    """What gradio's queue answers to a page of that origin that calls a function."""
    found: list[dict[str, Any]] = []
    answers = {"send_hash": {}, "send_data": {"data": data}}
    with joined(webui, origin) as (raw, stream):
        while (text := _read(stream)) is not None:
            found.append(json.loads(text))
            if (told := found[-1]["msg"]) in answers:
                _write(raw, json.dumps({"session_hash": "door", "fn_index": number, **answers[told]}).encode())
            if told == "process_completed":
                break
    return found


def leave(webui: Webui, number: int) -> None:
    """A page that calls a function and is closed before the answer."""
    with joined(webui, webui.address) as (raw, stream):
        assert json.loads(_read(stream) or "{}")["msg"] == "send_hash"
        _write(raw, json.dumps({"session_hash": "gone", "fn_index": number}).encode())


def test_a_page_that_is_closed_does_not_hold_up_reload_ui(webui: Webui) -> None:
    """gradio would wait for ever to tell it its answer, and the restart for gradio."""
    for _ in range(3):
        leave(webui, function(webui, "trainer_start"))
    webui.reload()
    assert "LoRA & more" in webui.probe("tabs")


def _read(stream: Any) -> str | None:
    """The next text of a WebSocket (RFC 6455); None when it has been closed."""
    head = stream.read(2)
    if len(head) < 2 or head[0] & 15 == 8:
        return None
    length = head[1] & 127
    if length > 125:
        length = struct.unpack("!H" if length == 126 else "!Q", stream.read(2 if length == 126 else 8))[0]
    text: str = stream.read(length).decode()
    return text


def _write(raw: socket.socket, data: bytes) -> None:
    size = bytes([128 | len(data)]) if len(data) < 126 else bytes([128 | 126]) + struct.pack("!H", len(data))
    raw.sendall(b"\x81" + size + bytes(4) + data)


def function(webui: Webui, element: str) -> int:
    """The number of what a click on our element calls."""
    config = webui.get("/config")
    block = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == element)
    return next(
        number
        for number, one in enumerate(config["dependencies"])
        if one["backend_fn"] and one["trigger"] == "click" and block in one["targets"]
    )


def test_our_extension_adds_no_route(webui: Webui) -> None:
    """Ours are functions of the WebUI's own page; the probe's route shows that one would be seen."""
    routes = webui.probe("routes")
    assert any("webui_probe" in module for _, module in routes)
    assert [path for path, module in routes if module.startswith("lib_trainer")] == []


def test_no_answer_of_ours_is_given_to_another_origin(webui: Webui) -> None:
    poll = json.dumps({"fn_index": function(webui, "trainer_poll"), "data": ["{}", ""], "session_hash": "s"})
    status, headers, _ = ask(webui, "POST", "/run/predict", poll, Origin=EVIL)
    assert "access-control-allow-origin" not in headers, "a browser keeps this answer from the page"
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    status, headers, _ = ask(webui, "OPTIONS", "/run/predict", "", Origin=EVIL, **preflight)
    assert status >= 400 and "access-control-allow-origin" not in headers, "nor is it asked at all"
    simple, _, _ = ask(webui, "POST", "/run/predict", poll, Origin=EVIL, **{"Content-Type": "text/plain"})
    assert simple == 422, "what needs no preflight is not read"


@pytest.mark.parametrize("element", ["trainer_poll", "trainer_stop", "dataset_command"])
def test_a_websocket_of_another_origin_calls_none_of_our_functions(webui: Webui, element: str) -> None:
    data = {"trainer_poll": ["{}", ""], "trainer_stop": [], "dataset_command": ["{}"]}[element]
    own = call(webui, function(webui, element), data, webui.address)
    assert own[-1]["msg"] == "process_completed" and own[-1]["success"], "our own page may"
    foreign = call(webui, function(webui, element), data, EVIL)
    assert [one["msg"] for one in foreign] == ["send_hash"], "closed as soon as it names one of ours"


def test_a_websocket_of_another_origin_starts_nothing(webui: Webui, values: Values) -> None:
    before = webui.probe("view")
    assert len(call(webui, function(webui, "trainer_start"), [], EVIL)) == 1
    assert webui.probe("view") == before
