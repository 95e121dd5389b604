"""What a job under way can be told."""

from __future__ import annotations

import threading


class Control:
    """Commands to a running job; every method may be called from any thread.

    `stop` ends the job after what is in progress and keeps what it has; `save` and `sample` are served between two
    steps of training and then forgotten.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()
        self.stops = 0
        """How often `stop` was called: what is done after the steps ends at the next one."""

    def stop(self) -> None:
        self.stops += 1
        self._stop.set()

    def save(self) -> None:
        self._save.set()

    def sample(self) -> None:
        self._sample.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def take_save(self) -> bool:
        """True once for each `save` (calls that come before it is served count as one)."""
        return _take(self._save)

    def take_sample(self) -> bool:
        return _take(self._sample)


def _take(flag: threading.Event) -> bool:
    was_set = flag.is_set()
    flag.clear()
    return was_set
