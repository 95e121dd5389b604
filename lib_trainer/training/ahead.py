"""Steps put together in a thread while the device is busy with the one before."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
AHEAD = 2
"""Steps that wait at most: a slow disk is bridged, and memory holds no more of them than it must."""


class _Raised:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Ahead(Generic[Item]):
    def __init__(self, items: Iterator[Item], count: int) -> None:
        self._items = items
        self._ready: queue.Queue[Item | _Raised] = queue.Queue(count)
        self._ended = threading.Event()

    def _fill(self) -> None:
        last: _Raised | None = None
        while not self._ended.is_set():
            try:
                item: Item | _Raised = next(self._items)
            except StopIteration:
                item = last = _Raised(None)
            except BaseException as error:
                item = last = _Raised(error)
            while not self._ended.is_set():
                with contextlib.suppress(queue.Full):
                    self._ready.put(item, timeout=0.1)
                    break
            if last is not None:
                break
        item = last = _Raised(None)  # an error's traceback holds this frame

    def run(self) -> Generator[Item, None, None]:
        # made when the first item is asked for: one that is never started holds what it was to do, which would hold it
        thread = threading.Thread(target=self._fill, name="trainer-ahead", daemon=True)
        thread.start()
        try:
            while True:
                item = self._ready.get()
                if not isinstance(item, _Raised):
                    yield item
                    continue
                if item.error is not None:
                    try:
                        raise item.error
                    finally:
                        del item  # its traceback holds this frame
                return
        finally:
            self._end(thread)

    def _end(self, thread: threading.Thread) -> None:
        self._ended.set()
        while not self._ready.empty():  # what waits to put something away need not wait any longer
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
        if thread.is_alive():
            thread.join()


@contextlib.contextmanager
def ahead(items: Iterator[Item], count: int = AHEAD) -> Iterator[Iterator[Item]]:
    """The same items in the same order, made by one thread up to `count` before they are asked for.

    What making one raises is raised when that item is asked for. On leaving, however that happens, no thread is left:
    it ends when the item that it is at is made.
    """
    made = _Ahead(items, count).run()
    try:
        yield made
    finally:
        made.close()
