"""An application whose WebSocket's client has left is ended; what it raises and all else stays as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lib_trainer.host import departed
from lib_trainer.host.departed import until_gone

GONE = {"type": "websocket.disconnect", "code": 1001}


def run(app: Callable[..., Awaitable[None]], *messages: dict[str, Any]) -> None:
    """With a client that sends these messages and then says nothing more."""

    async def whole() -> None:
        left = list(messages)

        async def receive() -> dict[str, Any]:
            return left.pop(0) if left else await asyncio.Future()

        async def send(message: Any) -> None: ...

        before = asyncio.all_tasks()
        await asyncio.wait_for(until_gone(app, {"type": "websocket"}, receive, send), 60)
        assert asyncio.all_tasks() == before, "a task is left"

    asyncio.run(whole())


def test_an_application_that_sleeps_for_ever_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departed, "GRACE", 0.01)
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        try:
            await asyncio.Future()
        finally:
            ended.append(True)

    run(app, {"type": "websocket.connect"}, GONE)
    assert ended


def test_an_application_that_listens_is_told_and_ends_by_itself() -> None:
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not told or told[-1] != "websocket.disconnect":
            told.append((await receive())["type"])
        await asyncio.sleep(0.01)
        told.append("its own end")

    run(app, {"type": "websocket.connect"}, {"type": "websocket.receive", "text": "x"}, GONE)
    assert told == ["websocket.connect", "websocket.receive", "websocket.disconnect", "its own end"]


def test_an_application_that_ends_first_and_one_that_fails() -> None:
    async def ends(scope: Any, receive: Any, send: Any) -> None: ...

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("of the application")

    run(ends)
    with pytest.raises(KeyError, match="of the application"):
        run(fails, {"type": "websocket.connect"})
