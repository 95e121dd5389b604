"""Ctrl-C in a terminal: the first one stops, the second one ends the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stopping_at_interrupt(stop: Callable[[], None], running: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """The first Ctrl-C (or a terminate signal) calls `stop`; the second one ends the process.

    Where nothing is `running` yet there is nothing to stop, and the first one ends it.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not running():
            raise KeyboardInterrupt
        asked = True
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
