"""The standalone page's doors: who is answered, and which files are handed out.

gradio 3.41 answers every origin (its CORSMiddleware) and serves the working directory under `/file=`. Here a request
is refused before gradio sees it, whatever its route: pages, events, WebSockets, uploads and files.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib_trainer.origins import foreign_page, header, host_name, is_address, is_loopback, names_of
from lib_trainer.refusals import ConfigError

CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:; "
    "frame-ancestors 'none'"
)
"""gradio's page asks for a script and fonts from elsewhere: the browser is told to stay on this server."""

HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)
FILES = ("/file=", "/file/")
LEAST_PASSWORD = 8
GUESS_SECONDS = 1.0
"""What a wrong password costs its sender."""
log = logging.getLogger(__name__)


class Doors:
    """ASGI middleware: refuses foreign hosts and origins, and files that are not the page's own.

    `host` is the address that is listened at, `serves` whether `/file=` may hand out a path (absolute, links followed).
    """

    def __init__(self, app: ASGIApp, host: str, serves: Callable[[Path], bool]) -> None:
        self.app, self.serves = app, serves
        self.names, self.public = names_of(host), not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refused = self.refusal(scope)
        if not refused:
            return await self.app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)
        log.warning("Refused: %s %r. %s", scope.get("method", "WebSocket"), scope["path"], refused)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        return await PlainTextResponse(refused + "\n", 403)(scope, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> str:
        """Why a request is not answered, as one sentence; empty if it is."""
        headers = scope["headers"]
        hosts = header(headers, "host")
        name = host_name(hosts[0]) if len(hosts) == 1 else ""
        if name not in self.names and not (self.public and is_address(name)):
            return "This server is not known by that name: open the address that it printed when it started."
        if (refused := foreign_page(headers)) and not _is_visit(scope):
            return refused
        path = str(scope["path"])
        if path.startswith(FILES) and not self._serves(path[len(FILES[0]) :]):
            return "This file is none of the page's."
        return ""

    def _serves(self, name: str) -> bool:
        try:
            return self.serves(Path(name).resolve())
        except (OSError, ValueError):  # a name that no file system has
            return False


def _is_visit(scope: Scope) -> bool:
    """Whether somebody follows a link to the page itself in a window of its own, which no other page can read."""
    headers = scope["headers"]
    return (
        scope["type"] == "http"
        and (scope["method"], scope["path"]) == ("GET", "/")
        and not header(headers, "origin")
        and header(headers, "sec-fetch-mode") == ["navigate"]
        and header(headers, "sec-fetch-dest") == ["document"]
    )


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sent


def check_password(host: str, password: str) -> None:
    """Raise `ConfigError` where others could reach the page without a password."""
    if not password and not is_loopback(host):
        raise ConfigError("serve.no_password", host=host)
    if password and len(password) < LEAST_PASSWORD:
        raise ConfigError("serve.short_password", least=LEAST_PASSWORD)


def asks_for(password: str) -> Callable[[str, str], bool] | None:
    """What gradio asks about a name and a password; None where there is no password. The name does not matter."""
    if not password:
        return None

    def allowed(_: str, given: str) -> bool:
        right = hmac.compare_digest(given.encode(), password.strip().encode())
        if not right:
            time.sleep(GUESS_SECONDS)
        return right

    return allowed
