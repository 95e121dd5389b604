"""What a page of another web site reaches of ours in the WebUI.

The WebUI takes gradio's CORSMiddleware out, so that other sites can read no answer and send no JSON. But browsers ask
no such leave for a WebSocket, and gradio's queue runs any function for whoever opens one. So a call of one of our
functions by a foreign page is refused; calls of the WebUI's own functions are its own affair.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from modules import shared

from lib_trainer.host.departed import until_gone
from lib_trainer.origins import foreign_page, header

PACKAGE = "lib_trainer"
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "cf-connecting-ip")
"""What proxies add, and the page of another site cannot: behind a proxy `Host` may be another name than the page's."""
log = logging.getLogger(__name__)


def own_functions(blocks: Any) -> frozenset[int]:
    """The numbers of the functions that this extension has put into the WebUI's page."""
    own = (str(getattr(getattr(one, "fn", None), "__module__", "")) for one in blocks.fns)
    return frozenset(number for number, module in enumerate(own) if module.split(".")[0] == PACKAGE)


class WebsocketDoor:
    """ASGI middleware: a foreign page's call of one of our functions ends its WebSocket, and so does a closed page.

    `allowed(origin)` says which other origins the WebUI was told to answer (--cors-allow-origins).
    """

    def __init__(self, app: Any, blocks: Any, allowed: Callable[[str], bool]) -> None:
        self.app, self.own, self.allowed = app, own_functions(blocks), allowed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        if not self.is_foreign(scope["headers"]):
            await until_gone(self.app, scope, receive, send)
            return

        async def guarded() -> Any:
            message = await receive()
            if message["type"] == "websocket.receive" and calls(message) in self.own:
                log.warning("A page of another site was kept from using the trainer.")
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        await until_gone(self.app, scope, guarded, send)

    def is_foreign(self, headers: Any) -> bool:
        origins = header(headers, "origin")
        if not origins or not foreign_page(headers) or any(header(headers, name) for name in FORWARDED):
            return False
        return not all(self.allowed(origin) for origin in origins)


def calls(message: Any) -> int | None:
    """The number of the function that a message of gradio's queue asks for."""
    try:
        found = json.loads(message.get("text") or message.get("bytes") or "null")
        return int(found["fn_index"])
    except (TypeError, ValueError, KeyError):
        return None


def guard(blocks: Any, app: Any) -> None:
    """Put the door before the WebUI's own middleware. Called when its server has started, and after "Reload UI"."""
    from starlette.middleware import Middleware

    if blocks is None:  # the API alone
        return
    app.user_middleware = [
        Middleware(WebsocketDoor, blocks=blocks, allowed=is_allowed),
        *(one for one in app.user_middleware if one.cls.__name__ != WebsocketDoor.__name__),
    ]
    app.middleware_stack = app.build_middleware_stack()


def is_allowed(origin: str) -> bool:
    """Whether the WebUI was told to answer this origin."""
    listed = str(getattr(shared.cmd_opts, "cors_allow_origins", None) or "").split(",")
    pattern = getattr(shared.cmd_opts, "cors_allow_origins_regex", None)
    return origin in listed or "*" in listed or bool(pattern and re.fullmatch(pattern, origin))
