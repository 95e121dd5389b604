"""A server on this machine that answers as the model hub does, for one model."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator

import pytest

from lib_trainer.tagging.models import download as module
from lib_trainer.tagging.models.registry import KnownModel

MODEL = KnownModel("wd-vit-tagger-v3", "SmilingWolf/wd-vit-tagger-v3", "v2.0", None, "")
LARGE = bytes(range(256)) * 20_000
SMALL = b"tag_id,name,category,count\n1,long_hair,0,5\n"


class Hub(http.server.ThreadingHTTPServer):
    """Large files redirect to a storage path; `cut` ends a connection after so many bytes, `spoil` changes one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {"model.onnx": LARGE, "selected_tags.csv": SMALL}
        self.cut = self.spoil = 0
        self.ranges = True
        self.hashes = True
        self.revision = "v2.0"
        self.asked: list[tuple[str, str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.0"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.server
        hub.asked.append((self.command, self.path, self.headers.get("Range", "")))
        name = self.path.rsplit("/", 1)[-1]
        place = f"/{MODEL.repo}/resolve/{hub.revision}/{name}"
        data = hub.files.get(name)
        if data is None or self.path not in (place, f"/storage/{name}", f"/renamed/{name}"):
            self.send_error(404)
            return
        if self.path == place and name == "model.onnx":
            self.send_response(302)
            self.send_header("Location", f"{hub.address}/storage/{name}")
            self.send_header("X-Linked-Size", str(len(data)))
            if hub.hashes:
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == place and name == "selected_tags.csv":
            self.send_response(307)
            self.send_header("Location", f"/renamed/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_file(name, data, body)

    def send_file(self, name: str, data: bytes, body: bool) -> None:
        hub = self.server
        start = 0
        given = self.headers.get("Range", "")
        if given and hub.ranges:
            start = int(given.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if hub.hashes:
            self.send_header("ETag", f'"{hashlib.sha1(b"blob %d" % len(data) + bytes(1) + data).hexdigest()}"')
        self.end_headers()
        if not body:
            return
        sent = bytearray(data[start:])
        if hub.spoil:
            sent[hub.spoil] ^= 1
        self.wfile.write(sent[: hub.cut] if hub.cut and name == "model.onnx" else sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "BLOCK", 1 << 18)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
