"""WebSockets whose browser has left. Knows no host, so that it can be tried without one."""

from __future__ import annotations

import asyncio
from typing import Any

GRACE = 5.0
"""Seconds in which an application may end by itself once its client is gone."""


async def until_gone(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Run an ASGI application for a WebSocket, and end it soon after its client has left.

    gradio 3.41 sleeps in `/queue/join` until it has sent the answer (`application_state`). To a page that was closed
    meanwhile none is ever sent, so it sleeps for ever, and "Reload UI" waits for it. What the queue computes goes on.
    """
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def listen() -> None:
        while True:
            message = await receive()
            arrived.put_nowait(message)
            if message["type"] == "websocket.disconnect":
                return

    call, listening = asyncio.ensure_future(app(scope, arrived.get, send)), asyncio.ensure_future(listen())
    try:
        await asyncio.wait({call, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            await asyncio.wait({call}, timeout=GRACE)
        if call.done():
            call.result()
    finally:
        for task in (call, listening):
            task.cancel()
        await asyncio.gather(call, listening, return_exceptions=True)
